"""The main kernels at one shape: by torch's profiler, or alone for ncu to look at.

python -m bench.gpu.profiled                    kernels and their times, into gpu-<device>-profile.json
ncu ... python -m bench.gpu.profiled --only run only runs them
"""

from collections.abc import Callable

import torch

from bench.gpu import tracing
from bench.gpu.check import require
from bench.gpu.results import Results
from bench.gpu.setting import Setting, parse
from bench.gpu.shapes import (
    TEMPERATURE,
    LossShape,
    QueueShape,
    SamplingShape,
    grouping,
    pairs,
    patches_of,
    queued,
)
from bench.gpu.variants import ROW, SYMMETRIC, using
from pscl_kernels import patch_nt_xent, queue_info_nce, sample_similar

Call = Callable[[], object]


def main() -> None:
    setting = parse(__doc__)
    made = calls(setting)
    if setting.only == "run":
        for call in made.values():
            for _ in range(4):
                call()
        if not setting.tiny:
            torch.cuda.synchronize()
        return
    require(setting, "patch_nt_xent", "sample_similar", "queue_info_nce")
    results = Results("profile", setting, {}, of_kernels=True)
    results.entries.clear()
    for name, call in made.items():
        results.add({"call": name, **tracing.profile(setting, call)})


def calls(setting: Setting) -> dict[str, Call]:
    """Forward and backward of both losses, and sampling, in the first dtype."""
    dtype = setting.dtypes[0]
    tiny = setting.tiny
    loss = LossShape(64 if tiny else 65_536, 16 if tiny else 64, 0, dtype)
    queue = QueueShape(24 if tiny else 65_536, 40 if tiny else 65_536, 16 if tiny else 64, dtype)
    sampling = SamplingShape(
        2 if tiny else 256, 5 if tiny else 64, 200 if tiny else 35_344, 16 if tiny else 64, dtype
    )

    def of_loss(variant: str, groups: int) -> Call:
        q, k = pairs(setting, loss.rows, loss.width, dtype)
        ids = grouping(setting, loss.rows, groups)

        def call() -> object:
            with using(variant) as backend:
                value = patch_nt_xent(q, k, ids, temperature=TEMPERATURE, backend=backend)
            return torch.autograd.grad(value, (q, k))

        return call

    query, key, entries = queued(setting, queue)
    templates, patches = patches_of(setting, sampling)

    def of_queue() -> object:
        value = queue_info_nce(query, key, entries, temperature=TEMPERATURE, backend="triton")
        return torch.autograd.grad(value, query)

    return {
        "patch_nt_xent, row": of_loss(ROW, 0),
        "patch_nt_xent, row, four groups": of_loss(ROW, 4),
        "patch_nt_xent, symmetric": of_loss(SYMMETRIC, 0),
        "queue_info_nce": of_queue,
        "sample_similar": lambda: sample_similar(templates, patches, backend="triton"),
    }


if __name__ == "__main__":
    main()

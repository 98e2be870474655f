"""Our queue loss: plain, with hard labels, and with the soft labels of PSCL-MoCo."""

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu import ceilings, floors, oracles, timing
from bench.gpu.check import require
from bench.gpu.measure import attempt
from bench.gpu.results import Results
from bench.gpu.setting import UNFINISHED, Setting, parse
from bench.gpu.shapes import TEMPERATURE, QueueShape, name_of, queue_shapes, queued, takes
from pscl_kernels import queue_info_nce

LABELS = ("hard", "soft")
"""hard: the pair's key alone is positive. soft: also entries of the same class, more so of the same condition."""

CLASSES, CONDITIONS = 4, 6

CHUNKED_ROWS = 16_384
"""Rows up to which `chunked` is measured."""


def main() -> None:
    setting = parse(__doc__)
    require(setting, "queue_info_nce")
    ceiling = ceilings.load(setting)
    results = Results("queue-info-nce", setting, {"temperature": TEMPERATURE}, of_kernels=True)
    for shape in queue_shapes(setting):
        for labels in LABELS:
            for backend in setting.backends:
                if backend == "chunked" and shape.rows > CHUNKED_ROWS:
                    continue
                if not takes(setting, backend, shape.width, shape.dtype):
                    continue
                key = {**shape._asdict(), "dtype": name_of(shape.dtype)}
                key |= {"labels": labels, "implementation": backend}
                if setting.only not in (None, backend) or results.has(**key):
                    continue
                if setting.left() < 0:
                    print(f"no time left for {key}: run this part again to go on")
                    sys.exit(UNFINISHED)
                results.add({**key, **attempt(partial(measured, setting, shape, labels, backend, ceiling))})
                if not setting.tiny:
                    torch.cuda.empty_cache()
    results.end()


def structure(setting: Setting, shape: QueueShape, labels: str) -> dict[str, Tensor]:
    """The arguments that say which entries are partly positive."""
    if labels == "hard":
        return {}
    row = torch.arange(shape.rows, device=setting.device)
    entry = torch.arange(shape.entries, device=setting.device)
    age = 0.99 ** torch.arange(shape.entries, device=setting.device).div(256, rounding_mode="floor")
    return {
        "groups": row % CLASSES,
        "queue_groups": entry % CLASSES,
        "conditions": row // CLASSES % CONDITIONS,
        "queue_conditions": entry // CLASSES % CONDITIONS,
        "same_weight": 0.5 * age / shape.entries,
        "any_weight": age / shape.entries,
    }


def measured(
    setting: Setting, shape: QueueShape, labels: str, backend: str, ceiling: floors.Ceilings | None
) -> dict[str, Any]:
    """Times, memory, share of the floor, and errors against the definition, for soft labels against `chunked`."""
    q, k, entries = queued(setting, shape)
    # Weights keep their precision, whatever the rows have: the truth is that of the same weights.
    options: dict[str, Any] = structure(setting, shape, labels)

    def call(a: Tensor, b: Tensor, c: Tensor, backend: str = backend) -> Tensor:
        return queue_info_nce(a, b, c, temperature=TEMPERATURE, backend=backend, **options)

    def truth(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return call(a, b, c, "chunked") if options else oracles.queue(a, b, c, TEMPERATURE)

    found = timing.of_loss(setting, lambda: call(q, k, entries), (q,))
    if "median_ms" in found[timing.BOTH] and shape.rows <= CHUNKED_ROWS:
        found |= oracles.errors_if_known(call, truth, (q, k, entries))
    if ceiling is not None:
        floor = floors.queue(shape.rows, shape.entries, shape.width, ceiling)
        for what in (timing.FORWARD, timing.BOTH):
            found[what] |= timing.share(floor[what], found[what])
    return found


if __name__ == "__main__":
    main()

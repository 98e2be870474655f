"""Our loss: both Triton forward passes, and `chunked`, which other devices run."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu import ceilings, floors, timing
from bench.gpu.check import require
from bench.gpu.measure import attempt
from bench.gpu.oracles import errors_if_known
from bench.gpu.results import Results
from bench.gpu.setting import UNFINISHED, Setting, parse
from bench.gpu.shapes import TEMPERATURE, LossShape, grouping, loss_shapes, name_of, pairs, takes
from bench.gpu.variants import CHUNKED, LOSS_VARIANTS, SYMMETRIC, backend_of, shipped, using
from pscl_kernels import patch_nt_xent

CHUNKED_ROWS = 65_536
"""Rows up to which `chunked` is measured."""

ERROR_ROWS = 65_536
"""Rows up to which errors are taken: float64 in tiles, which correctness.py holds against the definition."""


def main() -> None:
    setting = parse(__doc__)
    require(setting, "patch_nt_xent")
    ceiling = ceilings.load(setting)
    results = Results(
        "patch-nt-xent", setting, {"temperature": TEMPERATURE, "shipped": shipped()}, of_kernels=True
    )
    for shape in loss_shapes(setting):
        for variant in LOSS_VARIANTS:
            if setting.only not in (None, variant) or (variant == CHUNKED and shape.rows > CHUNKED_ROWS):
                continue
            if not takes(setting, backend_of(variant), shape.width, shape.dtype):
                continue
            key = {**shape._asdict(), "dtype": name_of(shape.dtype), "implementation": variant}
            if results.has(**key):
                continue
            if setting.left() < 0:
                print(f"no time left for {key}: run this part again to go on")
                sys.exit(UNFINISHED)
            results.add({**key, **attempt(partial(measured, setting, shape, variant, ceiling))})
            if not setting.tiny:
                torch.cuda.empty_cache()
    results.end()


def loss_of(ids: Tensor | None, backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda q, k: patch_nt_xent(q, k, ids, temperature=TEMPERATURE, backend=backend)


def measured(
    setting: Setting, shape: LossShape, variant: str, ceiling: floors.Ceilings | None
) -> dict[str, Any]:
    """Times, memory, share of the floor and, up to `ERROR_ROWS`, errors."""
    q, k = pairs(setting, shape.rows, shape.width, shape.dtype)
    ids = grouping(setting, shape.rows, shape.groups)
    with using(variant) as backend:
        call = loss_of(ids, backend)
        found = timing.of_loss(setting, lambda: call(q, k), (q, k))
        if shape.rows <= ERROR_ROWS and "median_ms" in found[timing.BOTH]:
            found |= errors_if_known(call, loss_of(ids, "chunked"), (q, k))
    if ceiling is not None:
        floor = floors.loss(shape.rows, shape.width, shape.groups, ceiling)
        way = "symmetric" if variant == SYMMETRIC else "row"
        for what in (timing.FORWARD, timing.BOTH):
            found[what] |= timing.share(floor[f"{what} {way}"], found[what])
    return found


if __name__ == "__main__":
    main()

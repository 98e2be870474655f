"""Device, dtypes and inputs that the checks share."""

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

DEVICE = torch.device(os.environ.get("PSCL_BENCH_DEVICE", "cuda"))

INTERPRETED = DEVICE.type == "cpu"

DTYPES = (torch.float16,) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
"""Triton's interpreter computes bfloat16 products wrongly."""

gpu_only = pytest.mark.skipif(INTERPRETED, reason="says something on a GPU alone")

DEFINITION_ROWS = 4096
"""Rows up to which the truth is the definition in float64; beyond, float64 in tiles."""


Case = tuple[int | float, ...]


def sized(cases: Sequence[Case], size: Callable[..., int] = lambda n, *_: n) -> list[Case]:
    """The cases that are small enough for where they run."""
    return [case for case in cases if not INTERPRETED or size(*case) <= 100]


def rows(n: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two related views of n rows."""
    torch.manual_seed(n + width)
    q = torch.randn(n, width, device=DEVICE)
    return q.to(dtype), (0.5 * q + torch.randn_like(q)).to(dtype)


def truth_backend(n: int) -> str:
    return "reference" if n <= DEFINITION_ROWS else "chunked"


def assert_close(
    ours: list[Tensor], exact: list[Tensor], tau: float, dtype: torch.dtype, sizes: list[float]
) -> None:
    """Greatest error of each result within the rounding of its rows.

    Rows are rounded to their dtype after scaling, which moves a logit by up to eps / tau. `sizes`: of the terms whose
    difference each result is.
    """
    rounding = 2 * torch.finfo(dtype).eps / tau + 1e-5
    for mine, true, size in zip(ours, exact, sizes, strict=True):
        bound = rounding * max(size, true.abs().max().item())
        assert (mine - true).abs().max().item() <= bound

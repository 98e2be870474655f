"""Norms of rows, which neither vanish nor overflow."""

import torch
from torch import Tensor

NORM_FLOOR = 1e-8
"""A row is divided by max(norm, NORM_FLOOR), as torch.cosine_similarity does."""

SHRINK = 2.0**-80
"""Factor on rows of float32 whose squares overflow; exact, because it is a power of two."""

SHRINK_DOUBLE = 2.0**-600
"""The same for float64."""


def row_norms(x: Tensor) -> Tensor:
    """(..., 1) max(norm, NORM_FLOOR) of rows (..., D) of float32 or float64.

    The squares of a float32 row longer than 1.8e19 overflow; its norm is then computed from smaller numbers.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # On a CPU, reading the values is cheaper than the second norm.
    if norm.device.type != "cpu" or has_infinity(norm):
        shrink = SHRINK_DOUBLE if x.dtype == torch.float64 else SHRINK
        again = torch.linalg.vector_norm(x * shrink, dim=-1, keepdim=True).div_(shrink)
        norm = torch.where(norm.isinf(), again, norm)
    result: Tensor = norm.clamp_min_(NORM_FLOOR)
    return result


def has_infinity(x: Tensor) -> bool:
    """Whether a tensor on the CPU holds an infinity."""
    return bool(x.isinf().any())

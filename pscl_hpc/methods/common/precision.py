"""Precision of what is computed outside the network."""

from __future__ import annotations

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which products are computed in the precision of their factors: what is compared, or kept."""
    return torch.autocast(device.type, enabled=False)


def at_least_float32(values: Tensor) -> Tensor:
    """``values`` in float32 where they are of 16 bits, else as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

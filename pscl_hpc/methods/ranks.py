"""Means over the images of all ranks, as :class:`pscl_hpc.methods.Method` wants them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def sum_over_ranks(value: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Sum of a tensor over the ranks, without gradient; the tensor itself for one process."""
    if process_group is None:
        return value.detach()
    value = value.detach().clone()
    dist.all_reduce(value, group=process_group)
    return value


def whole_loss(part: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """The loss of the whole batch from this rank's part of it, parts adding up.

    The value is the sum and equal on every rank; the gradient is that of this rank's part, so that gradients of
    parameters add up over ranks to those of the whole.
    """
    if process_group is None:
        return part
    # The difference is zero: it carries the gradient and leaves the value the same on every rank to the last bit.
    return sum_over_ranks(part, process_group) + (part - part.detach())


def mean_over_ranks(total: Tensor, count: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """``total / count`` of the whole batch from this rank's sum and number; 0 where nothing is counted anywhere."""
    return whole_loss(total / sum_over_ranks(count, process_group).clamp_min(1), process_group)

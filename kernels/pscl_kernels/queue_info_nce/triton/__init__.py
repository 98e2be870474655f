"""InfoNCE against a queue in fused Triton kernels.

`sorting` sorts the queue and finds its runs of equal labels, whose keys `runs` adds up. In the forward pass, `rows`
normalises, scales and casts the rows and looks up their targets, and `tiles` computes the sums of exponentials. In the
backward pass, `tiles` sums the keys by their softmax, and `rows` adds positive and targets and passes the gradient
through the normalisation. There are no atomic additions, so results repeat to the last bit.
"""

import torch
from torch import Tensor

from pscl_kernels.patch_nt_xent.triton.tiling import layout, on_device
from pscl_kernels.queue_info_nce.operation import Columns, Rows, scale_of
from pscl_kernels.queue_info_nce.triton.rows import finish, losses, prepared
from pscl_kernels.queue_info_nce.triton.sorting import columns
from pscl_kernels.queue_info_nce.triton.tiles import log_sums, weighted_keys

__all__ = ["backward", "columns", "forward", "layout", "losses"]


def forward(
    q: Tensor, k: Tensor, present: Tensor, temperature: Tensor, columns: Columns, masses: Tensor
) -> Rows:
    """See `operation.Backend`."""
    scale = on_device(scale_of(temperature), q.device)
    x, positive, target, mass = prepared(q, k, present, scale, columns, masses)
    if q.shape[0] == 0:
        return Rows(positive.unsqueeze(0), positive, target, mass)
    return Rows(log_sums(x, positive, scale, columns), positive, target, mass)


def backward(
    q: Tensor,
    k: Tensor,
    present: Tensor,
    temperature: Tensor,
    columns: Columns,
    lse: Tensor,
    mass: Tensor,
    coefficient: Tensor,
    with_k: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `operation.Backend`."""
    if q.shape[0] == 0:
        empty = torch.empty_like(q)
        return empty, torch.empty_like(k) if with_k else k.new_empty(0), lse.new_zeros(())
    x, positive, *_ = prepared(q, k, present, on_device(scale_of(temperature), q.device), None, None)
    total = weighted_keys(x, lse, columns)
    return finish(total, q, k, present, positive, temperature, columns, lse, mass, coefficient, with_k)

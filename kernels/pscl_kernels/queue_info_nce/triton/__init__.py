"""InfoNCE against a queue in fused Triton kernels.

`runs` adds up the keys of equal labels. In the forward pass, `rows` normalises, scales and casts the rows and looks up
their targets, and `tiles` computes the sums of exponentials. In the backward pass, `tiles` sums the keys by their
softmax, and `rows` adds positive and targets and passes the gradient through the normalisation. There are no atomic
additions, so results repeat to the last bit.
"""

import torch
from torch import Tensor

from pscl_kernels.patch_nt_xent.triton.tiling import layout
from pscl_kernels.queue_info_nce.operation import Columns, Rows
from pscl_kernels.queue_info_nce.triton.rows import finish, losses, prepared
from pscl_kernels.queue_info_nce.triton.runs import run_sums
from pscl_kernels.queue_info_nce.triton.tiles import log_sums, weighted_keys

__all__ = ["backward", "forward", "layout", "losses", "run_sums"]


def forward(q: Tensor, k: Tensor, present: Tensor, temperature: Tensor, columns: Columns) -> Rows:
    """See `operation.Backend`."""
    x, positive, target = prepared(q, k, present, temperature, columns)
    if q.shape[0] == 0:
        return Rows(positive.unsqueeze(0), positive, target)
    return Rows(log_sums(x, positive, temperature, columns), positive, target)


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
    x, positive, _ = prepared(q, k, present, temperature, None)
    total = weighted_keys(x, lse, columns)
    return finish(total, q, k, present, positive, temperature, columns, lse, mass, coefficient, with_k)

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""Normalised, scaled, cast and sorted rows in one pass over the inputs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.patch_nt_xent.operation import Prepared, scale_of
from pscl_kernels.patch_nt_xent.rows import sort_by_group
from pscl_kernels.patch_nt_xent.triton.tiling import PLAIN_ROWS, layout, norms, on_device


def prepare(q: Tensor, k: Tensor, groups: Tensor, temperature: Tensor) -> Prepared:
    n, d = q.shape
    width, dtype = layout(q)
    sorting = sort_by_group(groups)
    x = q.new_empty((2 * n, width), dtype=dtype)
    positive, norm = (q.new_empty(2 * n, dtype=torch.float32) for _ in range(2))
    if n:
        _prepare[(triton.cdiv(2 * n, PLAIN_ROWS),)](
            q.contiguous(),
            k.contiguous(),
            sorting.label,
            sorting.order,
            on_device(scale_of(temperature), q.device),
            x,
            positive,
            norm,
            n,
            d,
            WIDTH=width,
            ROWS=PLAIN_ROWS,
        )
    return Prepared(x, positive, norm, *sorting)


@triton.jit
def _prepare(
    q, k, label, order, scale, x, positive, norm, n, d, WIDTH: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """x, positive and norm of `Prepared` for one block of sorted rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < 2 * n
    column = tl.arange(0, WIDTH)
    source = tl.load(order + row, mask=inside, other=0)
    present = tl.load(label + row, mask=inside, other=0) < 0
    second = source >= n
    source = tl.where(second, source - n, source)
    place = source[:, None] * d + column[None, :]
    read = (inside & present)[:, None] & (column < d)[None, :]
    in_q = tl.load(q + place, mask=read, other=0.0).to(tl.float32)
    in_k = tl.load(k + place, mask=read, other=0.0).to(tl.float32)
    own = tl.where(second[:, None], in_k, in_q)
    other = tl.where(second[:, None], in_q, in_k)
    own_norm, other_norm = norms(own), norms(other)
    factor = tl.load(scale)
    own = (own / own_norm[:, None] * factor).to(x.dtype.element_ty)
    other = (other / other_norm[:, None] * factor).to(x.dtype.element_ty)
    tl.store(x + row[:, None] * WIDTH + column[None, :], own, mask=inside[:, None])
    tl.store(positive + row, tl.sum(own.to(tl.float32) * other.to(tl.float32), 1), mask=inside)
    tl.store(norm + row, own_norm, mask=inside)

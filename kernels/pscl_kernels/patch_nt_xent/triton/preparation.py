# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""Normalised, scaled, cast and sorted rows in one pass over the inputs, and the mean of the losses of all rows."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.patch_nt_xent import rows as row_module
from pscl_kernels.patch_nt_xent.operation import LOG2_E, Prepared
from pscl_kernels.patch_nt_xent.triton.tiling import (
    MEAN_BLOCK,
    PLAIN_ROWS,
    layout,
    norms,
    temperature_argument,
)

STEPS = row_module.SHARD_PAIRS.bit_length()
"""Steps of a binary search in the pairs of a shard."""

LOG2E = tl.constexpr(LOG2_E)


def prepare(q: Tensor, k: Tensor, groups: Tensor, temperature: Tensor) -> Prepared:
    """See `operation.Backend`; the order of the rows is that of `rows.sort_by_group`."""
    n, d = q.shape
    width, dtype = layout(q)
    x = q.new_empty((2 * n, width), dtype=dtype)
    positive, norm = (q.new_empty(2 * n, dtype=torch.float32) for _ in range(2))
    label, order, partner = (groups.new_empty(2 * n) for _ in range(3))
    if n:
        # Only the pairs are sorted: where the two rows of a pair come follows from the run of its group. The last shard
        # is filled with pairs that take no part, which come after all others.
        pairs = min(row_module.SHARD_PAIRS, n)
        keys = groups.clamp_min(-1)
        if n % pairs:
            keys = torch.nn.functional.pad(keys, (0, -n % pairs), value=-1)
        group, source = torch.sort(keys.view(-1, pairs), dim=1, descending=True, stable=True)
        tau, value = temperature_argument(temperature)
        _prepare[(triton.cdiv(group.numel(), PLAIN_ROWS),)](
            q.contiguous(),
            k.contiguous(),
            group,
            source,
            tau,
            math.sqrt(LOG2_E / value) if value > 0 else math.nan,
            x,
            positive,
            norm,
            label,
            order,
            partner,
            n,
            d,
            pairs,
            WIDTH=width,
            ROWS=PLAIN_ROWS,
            STEPS=STEPS,
        )
    return Prepared(x, positive, norm, label, order, partner)


def mean(lse: Tensor, positive: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """See `operation.Backend`."""
    loss, count = lse.new_empty(()), label.new_empty(())
    _mean[(1,)](lse, positive, label, loss, count, lse.numel(), BLOCK=MEAN_BLOCK, num_warps=16)
    return loss, count


@triton.jit
def _place(group, wanted, first, size, equal: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """[ROWS] places in the descending groups [first, first + size) of the first one less than each wanted.

    Not greater instead of less if `equal`.
    """
    begin = tl.zeros((ROWS,), tl.int32)
    end = begin + size
    for _ in range(STEPS):
        middle = (begin + end) // 2
        value = tl.load(group + first + middle, mask=begin < end, other=0)
        before = (value > wanted if equal else value >= wanted) & (begin < end)
        begin, end = tl.where(before, middle + 1, begin), tl.where(before, end, middle)
    return begin


@triton.jit
def _prepare(
    q,
    k,
    group,
    source,
    tau,
    host_scale,
    x,
    positive,
    norm,
    label,
    order,
    partner,
    n,
    d,
    pairs,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """`Prepared` for both rows of a block of sorted pairs."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    first = place // pairs * pairs
    size = tl.minimum(pairs, n - first).to(tl.int32)
    within = (place - first).to(tl.int32)
    inside = within < size
    own = tl.load(group + place, mask=inside, other=-1)
    pair = first + tl.load(source + place, mask=inside, other=0)
    # The q rows of a group come before its k rows.
    q_row = 2 * first + _place(group, own, first, size, True, ROWS, STEPS) + within
    k_row = 2 * first + _place(group, own, first, size, False, ROWS, STEPS) + within

    column = tl.arange(0, WIDTH)
    read = (inside & (own >= 0))[:, None] & (column < d)[None, :]
    a = tl.load(q + pair[:, None] * d + column[None, :], mask=read, other=0.0).to(tl.float32)  # [ROWS, WIDTH]
    b = tl.load(k + pair[:, None] * d + column[None, :], mask=read, other=0.0).to(tl.float32)  # [ROWS, WIDTH]
    a_norm, b_norm = norms(a), norms(b)
    if tau is None:
        factor = host_scale
    else:
        factor = tl.sqrt((1.0 / tl.load(tau).to(tl.float64)) * LOG2E).to(tl.float32)
    a = (a / a_norm[:, None] * factor).to(x.dtype.element_ty)
    b = (b / b_norm[:, None] * factor).to(x.dtype.element_ty)
    exponent = tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)
    tl.store(x + q_row[:, None] * WIDTH + column[None, :], a, mask=inside[:, None])
    tl.store(x + k_row[:, None] * WIDTH + column[None, :], b, mask=inside[:, None])
    tl.store(positive + q_row, exponent, mask=inside)
    tl.store(positive + k_row, exponent, mask=inside)
    tl.store(norm + q_row, a_norm, mask=inside)
    tl.store(norm + k_row, b_norm, mask=inside)
    tl.store(label + q_row, -1 - own, mask=inside)
    tl.store(label + k_row, -1 - own, mask=inside)
    tl.store(order + q_row, pair, mask=inside)
    tl.store(order + k_row, pair + n, mask=inside)
    tl.store(partner + q_row, k_row, mask=inside)
    tl.store(partner + k_row, q_row, mask=inside)


@triton.jit
def _mean(lse, positive, label, loss, count, rows, BLOCK: tl.constexpr):
    """Mean loss of the rows that take part, by one program, and their number, at least 1."""
    total = tl.zeros((BLOCK,), tl.float32)
    number = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        present = tl.load(label + row, mask=row < rows, other=0) < 0
        value = tl.load(lse + row, mask=row < rows, other=0.0) - tl.load(
            positive + row, mask=row < rows, other=0.0
        )
        total += tl.where(present, value, 0.0)
        number += present.to(tl.int32)
    found = tl.maximum(tl.sum(number, 0), 1)
    tl.store(loss, tl.sum(total, 0) / LOG2E / found)
    tl.store(count, found.to(tl.int64))

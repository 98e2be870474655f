# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The gradient: one sum for each row as query and as negative, then the backward pass of the normalisation."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.norms import NORM_FLOOR
from pscl_kernels.patch_nt_xent.operation import Saved
from pscl_kernels.patch_nt_xent.rows import shard_rows
from pscl_kernels.patch_nt_xent.triton import tiling
from pscl_kernels.patch_nt_xent.triton.tiling import PLAIN_ROWS, negatives, walk

FLOOR = tl.constexpr(NORM_FLOOR)

LOG2_GAIN = 10.0
GAIN = tl.constexpr(2.0**LOG2_GAIN)
"""Factor on the weights W of the backward pass, which are in [0, 2]: keeps small ones normal in float16."""


def row_gradients(
    coefficient: Tensor, q: Tensor, k: Tensor, saved: Saved, rank: int, *, plain: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `operation.Backend`."""
    ranks, rows, width = saved.x.shape
    dq, dk = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    radial = torch.empty_like(saved.norm)
    if not rows:
        return dq, dk, radial
    total = torch.empty_like(saved.x[rank], dtype=torch.float32)
    side = shard_rows(rows)
    bits = saved.x.element_size() * 8
    config = tiling.backward_config(width, bits, tiling.uses_warp_groups(q.device))
    # Each program would otherwise compute the reciprocal sums of all columns again.
    factor = torch.exp2(LOG2_GAIN - saved.log_sum) if plain else saved.log_sum
    _weighted_negatives[(triton.cdiv(rows, config.rows),)](
        saved.x[rank],
        saved.x,
        saved.label[rank],
        saved.label,
        *tiling.runs(saved.label, saved.label[rank], config.rows, side),
        factor[rank],
        factor,
        total,
        rows,
        side,
        ranks * triton.cdiv(rows, side),
        WIDTH=width,
        ROWS=config.rows,
        COLUMNS=config.columns,
        PLAIN=plain,
        PRECISION=tiling.precision(saved.x.dtype),
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=config.registers,
    )
    _finish[(triton.cdiv(rows, PLAIN_ROWS),)](
        total,
        saved.x[rank],
        saved.label[rank],
        saved.log_sum[rank],
        q.contiguous(),
        k.contiguous(),
        saved.norm,
        saved.order,
        saved.partner,
        coefficient,
        dq,
        dk,
        radial,
        rows,
        q.shape[1],
        WIDTH=width,
        ROWS=PLAIN_ROWS,
    )
    return dq, dk, radial


@triton.jit
def _weights(exponents, own_factor, factor, PLAIN: tl.constexpr):
    """W of a tile, times GAIN, from the base-2 logarithms of the sums; with PLAIN, from their reciprocals times GAIN."""
    if PLAIN:
        w = tl.math.exp2(exponents) * (own_factor[:, None] + factor[None, :])
    else:
        w = tl.math.exp2(exponents - own_factor[:, None]) + tl.math.exp2(exponents - factor[None, :])
        w *= GAIN
    return w


@triton.jit(do_not_specialize=["shards"])  # compiled once for any number of ranks and shards
def _weighted_negatives(
    own_x, x, own_label, label, low, high, present, own_factors, factors, out, rows, side, shards,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PLAIN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_j W_ij x_j over the negatives, for one block of own rows."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = first_row + tl.arange(0, ROWS)
    last_row = tl.minimum(first_row + ROWS, rows) - 1
    inside = row < rows
    width = tl.arange(0, WIDTH)
    within = tl.arange(0, ROWS)[:, None] * WIDTH + width[None, :]
    a = tl.load(own_x + first_row * WIDTH + within, mask=inside[:, None], other=0.0)
    own = tl.load(own_label + row, mask=inside, other=0)
    lowest, highest = tl.load(own_label + first_row), tl.load(own_label + last_row)
    own_factor = tl.load(own_factors + row, mask=inside, other=0.0)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    offset = tl.arange(0, COLUMNS)[:, None] * WIDTH + width[None, :]
    per_rank = tl.cdiv(rows, side)
    blocks = tl.num_programs(0)
    for shard in range(shards):
        block = (first_row * 0 + shard // per_rank) * rows + shard % per_rank * side  # first row, 64-bit
        count = tl.load(present + shard)
        low_column = tl.load(low + shard * blocks + tl.program_id(0))
        high_column = tl.load(high + shard * blocks + tl.program_id(0))
        for half in range(2):
            dense_first, dense, masked_first, before_gap, gap, masked = walk(
                half, low_column, high_column, count, lowest == highest, lowest < 0, COLUMNS
            )
            for i in range(dense):
                tile = (dense_first + i).to(tl.int64) * COLUMNS
                b = tl.load(x + (block + tile) * WIDTH + offset)
                factor = tl.load(factors + block + tile + tl.arange(0, COLUMNS))
                exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)
                w = _weights(exponents, own_factor, factor, PLAIN)
                total = tl.dot(w.to(b.dtype), b, total, input_precision=PRECISION)
            for i in range(masked):
                tile = masked_first + i + tl.where(i < before_gap, 0, gap)
                column = tile * COLUMNS + tl.arange(0, COLUMNS)
                there = column < count
                b = tl.load(
                    x + (block + tile.to(tl.int64) * COLUMNS) * WIDTH + offset, mask=there[:, None], other=0.0
                )
                factor = tl.load(factors + block + column, mask=there, other=0.0)
                exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)
                w = _weights(exponents, own_factor, factor, PLAIN)
                w = tl.where(negatives(own, label + block, column, count), w, 0.0)
                total = tl.dot(w.to(b.dtype), b, total, input_precision=PRECISION)
    tl.store(out + first_row * WIDTH + within, total * (1.0 / GAIN), mask=inside[:, None])


@triton.jit
def _finish(
    total, own_x, own_label, own_log_sum, q, k, norm, order, partner, coefficient, dq, dk, radial, rows, d,
    WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradient of the inputs' rows, and <z, dx> of each, for one block of own rows.

    Adds the gradient from the positive, and passes the sum through the normalisation to the row's place in q or k.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    width = tl.arange(0, WIDTH)
    present = tl.load(own_label + row, mask=inside, other=0) < 0
    other = tl.load(partner + row, mask=inside, other=0)
    a = tl.load(own_x + row[:, None] * WIDTH + width[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    c = tl.load(own_x + other[:, None] * WIDTH + width[None, :], mask=inside[:, None], other=0.0).to(
        tl.float32
    )
    exponent = tl.sum(a * c, 1)
    own_sum = tl.load(own_log_sum + row, mask=inside, other=0.0)
    other_sum = tl.load(own_log_sum + other, mask=inside, other=0.0)
    pull = tl.math.exp2(exponent - own_sum) + tl.math.exp2(exponent - other_sum) - 2.0
    dx = tl.load(total + row[:, None] * WIDTH + width[None, :], mask=inside[:, None], other=0.0)
    dx = tl.where(present[:, None], dx + pull[:, None] * c, 0.0)

    source = tl.load(order + row, mask=inside, other=0)
    n = rows // 2
    second = source >= n
    place = tl.where(second, source - n, source)[:, None] * d + width[None, :]
    here = inside[:, None] & (width < d)[None, :]
    read = here & present[:, None]
    z = tl.load(q + place, mask=read & (source < n)[:, None], other=0.0).to(tl.float32)
    z += tl.load(k + place, mask=read & second[:, None], other=0.0).to(tl.float32)
    length = tl.load(norm + row, mask=inside, other=1.0)
    z /= length[:, None]
    along = tl.sum(z * dx, 1)
    tl.store(radial + row, along, mask=inside)
    # At the floor the divisor is constant, so the gradient keeps its radial part.
    tangential = tl.where(length > FLOOR, along, 0.0)
    gradient = (dx - z * tangential[:, None]) * (tl.load(coefficient) / length)[:, None]
    gradient = tl.where(present[:, None], gradient, 0.0)
    tl.store(dq + place, gradient.to(dq.dtype.element_ty), mask=here & (source < n)[:, None])
    tl.store(dk + place, gradient.to(dk.dtype.element_ty), mask=here & second[:, None])

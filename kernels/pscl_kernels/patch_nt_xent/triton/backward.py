# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The gradient: one sum for each row as query and as negative, then the backward pass of the normalisation."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.norms import NORM_FLOOR
from pscl_kernels.patch_nt_xent.operation import LOG2_E, Saved
from pscl_kernels.patch_nt_xent.rows import shard_rows
from pscl_kernels.patch_nt_xent.triton import tiling
from pscl_kernels.patch_nt_xent.triton.runs import GAIN, runs
from pscl_kernels.patch_nt_xent.triton.tiling import (
    MEAN_BLOCK,
    PLAIN_ROWS,
    exp2_by_shares,
    negatives,
    walk,
    wanted_kind,
)

FLOOR = tl.constexpr(NORM_FLOOR)
LOG2E = tl.constexpr(LOG2_E)


def row_gradients(
    grad: Tensor, q: Tensor, k: Tensor, saved: Saved, rank: int, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `operation.Backend`."""
    ranks, rows, width = saved.x.shape
    grad_q, grad_k = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    radial = torch.empty_like(saved.norm)
    if not rows:
        return grad_q, grad_k, radial
    total = torch.empty_like(saved.x[rank], dtype=torch.float32)
    side = shard_rows(rows)
    config = tiling.backward_config(width, saved.x.element_size() * 8, tiling.chip(q.device))
    # Each program of `_weighted_negatives` would otherwise compute the reciprocal sums of all columns again.
    columns, reciprocal = runs(saved.label, rank, config.rows, saved.lse)
    for plain, tau in tiling.kinds(temperature):
        factor = reciprocal if plain else saved.lse
        _weighted_negatives[(triton.cdiv(rows, config.rows),)](
            saved.x[rank],
            saved.x,
            saved.label[rank],
            saved.label,
            *columns,
            factor[rank],
            factor,
            total,
            tau,
            rows,
            side,
            ranks * triton.cdiv(rows, side),
            WIDTH=width,
            ROWS=config.rows,
            COLUMNS=config.columns,
            PLAIN=plain,
            PRECISION=tiling.precision(saved.x.dtype),
            POLYNOMIAL=config.polynomial,
            num_warps=config.warps,
            num_stages=config.stages,
            maxnreg=config.registers,
        )
    tau, value = tiling.temperature_argument(temperature)
    _finish[(triton.cdiv(rows, PLAIN_ROWS),)](
        total,
        saved.x[rank],
        saved.label[rank],
        saved.lse[rank],
        q.contiguous(),
        k.contiguous(),
        saved.norm,
        saved.order,
        saved.partner,
        grad,
        saved.number,
        tau,
        math.sqrt(LOG2_E * value) if value > 0 else math.nan,
        grad_q,
        grad_k,
        radial,
        rows,
        q.shape[1],
        WIDTH=width,
        ROWS=PLAIN_ROWS,
    )
    return grad_q, grad_k, radial


def temperature_gradient(grad: Tensor, radial: Tensor, saved: Saved, temperature: Tensor) -> Tensor:
    """See `operation.Backend`."""
    out = torch.empty((), dtype=temperature.dtype, device=radial.device)
    tau, value = tiling.temperature_argument(temperature)
    slope = -0.5 / (value * math.sqrt(LOG2_E * value)) if value > 0 else math.nan
    _temperature_gradient[(1,)](
        radial, grad, saved.number, tau, slope, out, radial.numel(), BLOCK=MEAN_BLOCK, num_warps=16
    )
    return out.to(temperature.device)


@triton.jit
def _weights(exponents, own_factor, factor, PLAIN: tl.constexpr, POLYNOMIAL: tl.constexpr):
    """W of a tile, times GAIN, from the base-2 logarithms of the sums; with PLAIN, from their reciprocals times GAIN."""
    if PLAIN:
        w = exp2_by_shares(exponents, POLYNOMIAL) * (own_factor[:, None] + factor[None, :])
    else:
        w = tl.math.exp2(exponents - own_factor[:, None]) + tl.math.exp2(exponents - factor[None, :])
        w *= GAIN
    return w


@triton.jit(do_not_specialize=["shards"])  # compiled once for any number of ranks and shards
def _weighted_negatives(
    own_x,
    x,
    own_label,
    label,
    low,
    high,
    present,
    own_factors,
    factors,
    out,
    tau,
    rows,
    side,
    shards,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLAIN: tl.constexpr,
    PRECISION: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
):
    """sum_j W_ij x_j over the negatives, for one block of own rows. Nothing if `tau` asks for the other kind."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = first_row + tl.arange(0, ROWS)  # [ROWS]
    last_row = tl.minimum(first_row + ROWS, rows) - 1
    inside = row < rows
    if tau is not None:
        wanted = wanted_kind(tau, PLAIN)
        shards = tl.where(wanted, shards, 0)
        inside = row < tl.where(wanted, rows, 0)
    width = tl.arange(0, WIDTH)
    within = tl.arange(0, ROWS)[:, None] * WIDTH + width[None, :]
    a = tl.load(own_x + first_row * WIDTH + within, mask=inside[:, None], other=0.0)  # [ROWS, WIDTH]
    own = tl.load(own_label + row, mask=inside, other=0)  # [ROWS]
    lowest, highest = tl.load(own_label + first_row), tl.load(own_label + last_row)
    own_factor = tl.load(own_factors + row, mask=inside, other=0.0)  # [ROWS]
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    offset = tl.arange(0, COLUMNS)[:, None] * WIDTH + width[None, :]
    per_rank = tl.cdiv(rows, side)
    blocks = tl.num_programs(0)
    for shard in range(shards):
        block = (first_row * 0 + shard // per_rank) * rows + shard % per_rank * side  # first row, 64-bit
        shard_x = x + block * WIDTH
        tile_x = shard_x + offset  # [COLUMNS, WIDTH], as in `forward._log_sums`
        shard_factors = factors + block
        count = tl.load(present + shard)
        low_column = tl.load(low + shard * blocks + tl.program_id(0))
        high_column = tl.load(high + shard * blocks + tl.program_id(0))
        for half in range(2):
            dense_first, dense, masked_first, before_gap, gap, masked = walk(
                half, low_column, high_column, count, lowest == highest, lowest < 0, COLUMNS
            )
            for i in range(dense):
                tile = (dense_first + i) * COLUMNS
                b = tl.load(tile_x + tile * WIDTH)  # [COLUMNS, WIDTH]
                factor = tl.load(shard_factors + (tile + tl.arange(0, COLUMNS)))  # [COLUMNS]
                exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [ROWS, COLUMNS]
                w = _weights(exponents, own_factor, factor, PLAIN, POLYNOMIAL)
                total = tl.dot(w.to(b.dtype), b, total, input_precision=PRECISION)  # [ROWS, WIDTH]
            for i in range(masked):
                column = (masked_first + i + tl.where(i < before_gap, 0, gap)) * COLUMNS + tl.arange(
                    0, COLUMNS
                )
                there = column < count
                place = column[:, None] * WIDTH + width[None, :]
                b = tl.load(shard_x + place, mask=there[:, None], other=0.0)  # [COLUMNS, WIDTH]
                factor = tl.load(shard_factors + column, mask=there, other=0.0)  # [COLUMNS]
                exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [ROWS, COLUMNS]
                w = _weights(exponents, own_factor, factor, PLAIN, 0)
                w = tl.where(negatives(own, label + block, column, count), w, 0.0)
                total = tl.dot(w.to(b.dtype), b, total, input_precision=PRECISION)  # [ROWS, WIDTH]
    tl.store(out + first_row * WIDTH + within, total * (1.0 / GAIN), mask=inside[:, None])


@triton.jit
def _finish(
    total,
    own_x,
    own_label,
    own_lse,
    q,
    k,
    norm,
    order,
    partner,
    grad,
    count,
    tau,
    host_divisor,
    grad_q,
    grad_k,
    radial,
    rows,
    d,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
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
    own_sum = tl.load(own_lse + row, mask=inside, other=0.0)
    other_sum = tl.load(own_lse + other, mask=inside, other=0.0)
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
    if tau is None:
        divisor = host_divisor
    else:
        divisor = tl.sqrt(tl.load(tau).to(tl.float64) * LOG2E).to(tl.float32)
    coefficient = tl.load(grad).to(tl.float32) / tl.load(count).to(tl.float32) / divisor
    gradient = (dx - z * tangential[:, None]) * (coefficient / length)[:, None]
    gradient = tl.where(present[:, None], gradient, 0.0)
    tl.store(grad_q + place, gradient.to(grad_q.dtype.element_ty), mask=here & (source < n)[:, None])
    tl.store(grad_k + place, gradient.to(grad_k.dtype.element_ty), mask=here & second[:, None])


@triton.jit
def _temperature_gradient(radial, grad, count, tau, host_slope, out, rows, BLOCK: tl.constexpr):
    """Gradient of the temperature from <z, dx> of all rows, by one program."""
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        total += tl.load(radial + row, mask=row < rows, other=0.0)
    if tau is None:
        slope = host_slope
    else:
        value = tl.load(tau).to(tl.float64)
        slope = (-0.5 / (value * tl.sqrt(value * LOG2E))).to(tl.float32)
    share = tl.load(grad).to(tl.float32) / tl.load(count).to(tl.float32)
    tl.store(out, (tl.sum(total, 0) * share * slope).to(out.dtype.element_ty))

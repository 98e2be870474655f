# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The group-masked NT-Xent loss in fused Triton kernels.

Forward, `_prepare` normalises, scales, casts and sorts, and `_log_sums` gives each row its sum of exponentials.
Backward, `_weighted_negatives` sums up what acts on each row, whether it is query or negative, and `_finish` carries
that through the normalisation to the input's own row. Every program owns a block of rows
and walks all columns in one order, so that nothing is accumulated by atomics and results do not vary.

Because both rows and columns are sorted by group, the columns that a block of rows must not see as negatives are one
run [low, high) per rank. Column tiles inside the run are skipped where the block has a single group; tiles that the
run, the rows that take no part or the end of the matrix cut are masked; all others need no mask.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.patch_nt_xent.operation import Prepared, Saved, scale_of
from pscl_kernels.patch_nt_xent.rows import NORM_FLOOR

FLOOR = tl.constexpr(NORM_FLOOR)

GAIN = tl.constexpr(1024.0)
"""Factor on the weights W of the backward pass, which lie in [0, 2]: keeps small ones normal in float16."""

PLAIN_ROWS = 8
"""Rows per program of the kernels that go over the rows alone."""


class Config(NamedTuple):
    """Shape of one kernel's work."""

    rows: int  # rows of a program
    columns: int  # columns of a tile
    warps: int
    stages: int


def forward_config(width: int, bits: int) -> Config:
    """Tiling of `_log_sums` for rows of `width` (a power of two) numbers of `bits` bits."""
    if bits == 32:
        return Config(64, 32, 4, 2) if width <= 64 else Config(32, 64, 8, 2)
    if width <= 64:
        return Config(128, 64, 4, 3)
    if width <= 128:
        return Config(128, 128, 8, 2)
    return Config(128, 64, 8, 2) if width <= 256 else Config(64, 32, 8, 2)


def backward_config(width: int, bits: int) -> Config:
    """Tiling of `_weighted_negatives` for rows of `width` (a power of two) numbers of `bits` bits."""
    if bits == 32:
        return Config(32, 32, 4, 2) if width <= 64 else Config(32, 32, 8, 2)
    if width <= 128:
        return Config(128, 64, 8, 2)
    return Config(64, 64, 8, 2) if width <= 256 else Config(32, 64, 8, 2)


def layout(q: Tensor) -> tuple[int, torch.dtype]:
    """See `operation.Backend`, as for the functions below."""
    return max(16, triton.next_power_of_2(q.shape[1])), q.dtype


def precision(dtype: torch.dtype) -> str:
    """How a matrix product takes float32 factors: as three TF32 products, close to float32."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def prepare(q: Tensor, k: Tensor, groups: Tensor, temperature: Tensor) -> Prepared:
    n, d = q.shape
    width, dtype = layout(q)
    group, order = torch.sort(torch.cat([groups, groups]), stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(2 * n, device=order.device))
    x = q.new_empty((2 * n, width), dtype=dtype)
    positive, norm = (q.new_empty(2 * n, dtype=torch.float32) for _ in range(2))
    if n:
        _prepare[(triton.cdiv(2 * n, PLAIN_ROWS),)](
            q.contiguous(),
            k.contiguous(),
            group,
            order,
            _on(scale_of(temperature), q.device),
            x,
            positive,
            norm,
            n,
            d,
            WIDTH=width,
            ROWS=PLAIN_ROWS,
        )
    return Prepared(x, positive, norm, group, order, place.roll(-n).index_select(0, order))


def log_sums(x: Tensor, group: Tensor, positive: Tensor, rank: int, *, plain: bool) -> Tensor:
    ranks, rows, width = x.shape
    out = torch.empty_like(positive)
    if rows:
        config = forward_config(width, x.element_size() * 8)
        low, high, absent = _runs(group, rank)
        _log_sums[(triton.cdiv(rows, config.rows),)](
            x[rank],
            x,
            group[rank],
            group,
            low,
            high,
            absent,
            positive,
            out,
            rows,
            ranks,
            WIDTH=width,
            ROWS=config.rows,
            COLUMNS=config.columns,
            PLAIN=plain,
            PRECISION=precision(x.dtype),
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out


def row_gradients(
    coefficient: Tensor, q: Tensor, k: Tensor, saved: Saved, rank: int, *, plain: bool
) -> tuple[Tensor, Tensor, Tensor]:
    ranks, rows, width = saved.x.shape
    dq, dk = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    radial = torch.empty_like(saved.norm)
    total = torch.empty_like(saved.x[rank], dtype=torch.float32)
    if rows:
        config = backward_config(width, saved.x.element_size() * 8)
        low, high, absent = _runs(saved.group, rank)
        _weighted_negatives[(triton.cdiv(rows, config.rows),)](
            saved.x[rank],
            saved.x,
            saved.group[rank],
            saved.group,
            low,
            high,
            absent,
            saved.log_sum[rank],
            saved.log_sum,
            total,
            rows,
            ranks,
            WIDTH=width,
            ROWS=config.rows,
            COLUMNS=config.columns,
            PLAIN=plain,
            PRECISION=precision(saved.x.dtype),
            num_warps=config.warps,
            num_stages=config.stages,
        )
        _finish[(triton.cdiv(rows, PLAIN_ROWS),)](
            total,
            saved.x[rank],
            saved.group[rank],
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
    return dq, dk, radial.sum()


def _on(scalar: Tensor, device: torch.device) -> Tensor:
    """0-d float32 copy on `device`; a host value is filled in, which never waits and may be captured in a graph."""
    if scalar.device == device:
        return scalar.float()
    return torch.full((), float(scalar), dtype=torch.float32, device=device)


def _runs(group: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per rank r and own row i, the columns [low, high) of r with the row's group, and r's number of absent rows."""
    own = group[rank].expand_as(group).contiguous()
    low = torch.searchsorted(group, own).int()
    high = torch.searchsorted(group, own, right=True).int()
    return low, high, (group < 0).sum(1).int()


@triton.jit
def _prepare(
    q, k, group, order, scale, x, positive, norm, n, d, WIDTH: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """x, positive and norm of `Prepared` for one block of sorted rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < 2 * n
    column = tl.arange(0, WIDTH)
    source = tl.load(order + row, mask=inside, other=0)
    present = tl.load(group + row, mask=inside, other=-1) >= 0
    second = source >= n
    source = tl.where(second, source - n, source)
    place = source[:, None] * d + column[None, :]
    read = (inside & present)[:, None] & (column < d)[None, :]
    in_q = tl.load(q + place, mask=read, other=0.0).to(tl.float32)
    in_k = tl.load(k + place, mask=read, other=0.0).to(tl.float32)
    own = tl.where(second[:, None], in_k, in_q)
    other = tl.where(second[:, None], in_q, in_k)
    own_norm = tl.maximum(tl.sqrt(tl.sum(own * own, 1)), FLOOR)
    other_norm = tl.maximum(tl.sqrt(tl.sum(other * other, 1)), FLOOR)
    factor = tl.load(scale)
    own = (own / own_norm[:, None] * factor).to(x.dtype.element_ty)
    other = (other / other_norm[:, None] * factor).to(x.dtype.element_ty)
    tl.store(x + row[:, None] * WIDTH + column[None, :], own, mask=inside[:, None])
    tl.store(positive + row, tl.sum(own.to(tl.float32) * other.to(tl.float32), 1), mask=inside)
    tl.store(norm + row, own_norm, mask=inside)


@triton.jit
def _cuts(low, high, absent, single, alive, rows, COLUMNS: tl.constexpr):
    """Tiles of COLUMNS columns that a block of rows visits: (starts and counts) of two dense and four masked runs.

    low, high: the columns that hold the block's groups; absent: the columns before which nobody takes part.
    """
    low, high = tl.maximum(low, absent), tl.maximum(high, absent)
    start = absent // COLUMNS
    left = low // COLUMNS
    right = tl.cdiv(high, COLUMNS)
    whole = rows // COLUMNS
    end = tl.cdiv(rows, COLUMNS)
    first = tl.minimum(tl.cdiv(absent, COLUMNS), left)  # masked: [start, first)
    # Masked: [left, inner) and [outer, right); between them, tiles inside the run of a single group are skipped.
    right = tl.maximum(right, left)
    inner = tl.minimum(tl.where(single, tl.cdiv(low, COLUMNS), right), right)
    outer = tl.maximum(high // COLUMNS, inner)
    outer = tl.minimum(outer, right)
    last = tl.maximum(right, whole)  # masked: [last, end)
    dense_left = tl.where(alive, left - first, 0)
    dense_right = tl.where(alive, last - right, 0)
    masked_1 = tl.where(alive, first - start, 0)
    masked_2 = tl.where(alive, inner - left, 0)
    masked_3 = tl.where(alive, right - outer, 0)
    masked_4 = tl.where(alive, tl.maximum(end - last, 0), 0)
    return (
        first, dense_left, right, dense_right, start, masked_1, left, masked_2, outer, masked_3, last, masked_4
    )  # fmt: skip


@triton.jit
def _masked_tile(i, start, n1, left, n2, outer, n3, last):
    """The i-th of the masked tiles, whose runs begin at start, left, outer and last."""
    return tl.where(
        i < n1,
        start + i,
        tl.where(
            i < n1 + n2,
            left + i - n1,
            tl.where(i < n1 + n2 + n3, outer + i - n1 - n2, last + i - n1 - n2 - n3),
        ),
    )


@triton.jit
def _negative(own_group, group, column, rows):
    """(rows, columns) bool: which pairs of a tile are negatives."""
    other = tl.load(group + column, mask=column < rows, other=-1)
    return (own_group[:, None] != other[None, :]) & (other >= 0)[None, :]


@triton.jit
def _add_exponentials(total, top, exponents, PLAIN: tl.constexpr):
    """Add a tile's exponentials to the row sums `total`, which are relative to 2^top unless PLAIN."""
    if PLAIN:
        total += tl.sum(tl.math.exp2(exponents), 1)
    else:
        new = tl.maximum(top, tl.max(exponents, 1))
        total = total * tl.math.exp2(top - new) + tl.sum(tl.math.exp2(exponents - new[:, None]), 1)
        top = new
    return total, top


@triton.jit(do_not_specialize=["ranks"])  # one code for any number of ranks
def _log_sums(
    own_x, x, own_group, group, low, high, absent, positive, out, rows, ranks,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PLAIN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Base-2 logarithm of the sum of exponentials over positive and negatives, for one block of own rows."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = first_row + tl.arange(0, ROWS)
    last_row = tl.minimum(first_row + ROWS, rows) - 1
    inside = row < rows
    width = tl.arange(0, WIDTH)
    within = tl.arange(0, ROWS)[:, None] * WIDTH + width[None, :]
    a = tl.load(own_x + first_row * WIDTH + within, mask=inside[:, None], other=0.0)
    own = tl.load(own_group + row, mask=inside, other=-1)
    lowest, highest = tl.load(own_group + first_row), tl.load(own_group + last_row)
    top = tl.load(positive + row, mask=inside, other=0.0)
    if PLAIN:
        total = tl.math.exp2(top)
    else:
        total = tl.full((ROWS,), 1.0, tl.float32)
    offset = tl.arange(0, COLUMNS)[:, None] * WIDTH + width[None, :]
    block = first_row * 0  # first row of the rank whose columns are next, 64-bit
    for rank in range(ranks):
        (first, n_left, right, n_right, start, n1, left, n2, outer, n3, last, n4) = _cuts(
            tl.load(low + block + first_row), tl.load(high + block + last_row), tl.load(absent + rank),
            lowest == highest, highest >= 0, rows, COLUMNS,
        )  # fmt: skip
        for i in range(n_left + n_right):
            tile = tl.where(i < n_left, first + i, right + i - n_left)
            b = tl.load(x + (block + tile.to(tl.int64) * COLUMNS) * WIDTH + offset)
            exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)
            total, top = _add_exponentials(total, top, exponents, PLAIN)
        for i in range(n1 + n2 + n3 + n4):
            tile = _masked_tile(i, start, n1, left, n2, outer, n3, last)
            column = tile * COLUMNS + tl.arange(0, COLUMNS)
            there = (column < rows)[:, None]
            b = tl.load(x + (block + tile.to(tl.int64) * COLUMNS) * WIDTH + offset, mask=there, other=0.0)
            exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)
            exponents = tl.where(_negative(own, group + block, column, rows), exponents, float("-inf"))
            total, top = _add_exponentials(total, top, exponents, PLAIN)
        block += rows
    if PLAIN:
        log_sum = tl.math.log2(total)
    else:
        log_sum = tl.math.log2(total) + top
    tl.store(out + row, log_sum, mask=inside)


@triton.jit
def _weights(exponents, own_log_sum, log_sum, PLAIN: tl.constexpr):
    """W of a tile, times GAIN; with PLAIN, from the reciprocal sums times GAIN instead of the logarithms."""
    if PLAIN:
        w = tl.math.exp2(exponents) * (own_log_sum[:, None] + log_sum[None, :])
    else:
        w = tl.math.exp2(exponents - own_log_sum[:, None]) + tl.math.exp2(exponents - log_sum[None, :])
        w *= GAIN
    return w


@triton.jit
def _reciprocal(log_sum, PLAIN: tl.constexpr):
    """What `_weights` takes for a row."""
    return tl.math.exp2(-log_sum) * GAIN if PLAIN else log_sum


@triton.jit(do_not_specialize=["ranks"])  # one code for any number of ranks
def _weighted_negatives(
    own_x, x, own_group, group, low, high, absent, own_log_sum, log_sum, out, rows, ranks,
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
    own = tl.load(own_group + row, mask=inside, other=-1)
    lowest, highest = tl.load(own_group + first_row), tl.load(own_group + last_row)
    own_factor = _reciprocal(tl.load(own_log_sum + row, mask=inside, other=0.0), PLAIN)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    offset = tl.arange(0, COLUMNS)[:, None] * WIDTH + width[None, :]
    block = first_row * 0  # first row of the rank whose columns are next, 64-bit
    for rank in range(ranks):
        (first, n_left, right, n_right, start, n1, left, n2, outer, n3, last, n4) = _cuts(
            tl.load(low + block + first_row), tl.load(high + block + last_row), tl.load(absent + rank),
            lowest == highest, highest >= 0, rows, COLUMNS,
        )  # fmt: skip
        for i in range(n_left + n_right):
            tile = tl.where(i < n_left, first + i, right + i - n_left)
            b = tl.load(x + (block + tile.to(tl.int64) * COLUMNS) * WIDTH + offset)
            sums = tl.load(log_sum + block + tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS))
            factor = _reciprocal(sums, PLAIN)
            exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)
            w = _weights(exponents, own_factor, factor, PLAIN)
            total = tl.dot(w.to(b.dtype), b, total, input_precision=PRECISION)
        for i in range(n1 + n2 + n3 + n4):
            tile = _masked_tile(i, start, n1, left, n2, outer, n3, last)
            column = tile * COLUMNS + tl.arange(0, COLUMNS)
            there = column < rows
            b = tl.load(
                x + (block + tile.to(tl.int64) * COLUMNS) * WIDTH + offset, mask=there[:, None], other=0.0
            )
            factor = _reciprocal(tl.load(log_sum + block + column, mask=there, other=0.0), PLAIN)
            exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)
            w = _weights(exponents, own_factor, factor, PLAIN)
            w = tl.where(_negative(own, group + block, column, rows), w, 0.0)
            total = tl.dot(w.to(b.dtype), b, total, input_precision=PRECISION)
        block += rows
    tl.store(out + first_row * WIDTH + within, total * (1.0 / GAIN), mask=inside[:, None])


@triton.jit
def _finish(
    total, own_x, own_group, own_log_sum, q, k, norm, order, partner, coefficient, dq, dk, radial, rows, d,
    WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradient of the inputs' rows, and <z, dx> of each, for one block of own rows.

    Adds the positive's pull, and passes the gradient through the normalisation to the row's own place in q or k.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    width = tl.arange(0, WIDTH)
    present = tl.load(own_group + row, mask=inside, other=-1) >= 0
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
    # At the floor the divisor is constant, and no part of the gradient is radial.
    tangential = tl.where(length > FLOOR, along, 0.0)
    gradient = (dx - z * tangential[:, None]) * (tl.load(coefficient) / length)[:, None]
    gradient = tl.where(present[:, None], gradient, 0.0)
    tl.store(dq + place, gradient.to(dq.dtype.element_ty), mask=here & (source < n)[:, None])
    tl.store(dk + place, gradient.to(dk.dtype.element_ty), mask=here & second[:, None])

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The two passes over tiles of similarities.

If there are few rows, several programs share the tiles of a block of rows, and their results are combined in a fixed
order.

Whether sums of exponentials may be plain depends on the greatest norm of the queue, which is computed on the device.
Each program compares it and selects a loop with plain sums or one with running maxima, so that the host does not wait.
The backward pass needs no such choice: softmax is at most 1.
"""

import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.patch_nt_xent.triton.tiling import add_exponentials, chip, precision
from pscl_kernels.queue_info_nce.operation import Columns, plain_limit
from pscl_kernels.queue_info_nce.triton import tiling

FLOAT16_GAIN = tl.constexpr(10.0)
"""With float16, the softmax of the backward pass is computed times 2^10, which keeps small shares normal."""


def log_sums(x: Tensor, positive: Tensor, scale: Tensor, columns: Columns) -> Tensor:
    """(S, N) base-2 logarithms of shares of the sum of exponentials of rows x (N, width), N > 0, scaled by 0-d `scale`."""
    n, width = x.shape
    entries = columns.keys.shape[0]
    config = tiling.forward_config(width, x.element_size() * 8, chip(x.device))
    parts = tiling.splits(n, entries, config)
    out = positive.new_empty((parts, n))
    _log_sums[(triton.cdiv(n, config.rows), parts)](
        x,
        columns.keys,
        columns.filled,
        scale * columns.bound.clamp_min(1.0) <= plain_limit(entries),
        positive,
        out,
        n,
        WIDTH=width,
        ROWS=config.rows,
        COLUMNS=config.columns,
        PRECISION=precision(x.dtype),
        POLYNOMIAL=config.polynomial,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out


def weighted_keys(x: Tensor, lse: Tensor, columns: Columns) -> Tensor:
    """(parts, N, width) shares of sum_j p_ij queue_j of rows x (N, width), N > 0."""
    n, width = x.shape
    config = tiling.backward_config(width, x.element_size() * 8, chip(x.device))
    parts = tiling.splits(n, columns.keys.shape[0], config)
    total = lse.new_empty((parts, n, width))
    _weighted_keys[(triton.cdiv(n, config.rows), parts)](
        x,
        columns.keys,
        columns.filled,
        lse,
        total,
        n,
        WIDTH=width,
        ROWS=config.rows,
        COLUMNS=config.columns,
        PRECISION=precision(x.dtype),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return total


@triton.jit
def _span(filled, COLUMNS: tl.constexpr):
    """This program's tiles [first, last); the end of the queue cuts those from `whole` on, which is at most one."""
    tiles = tl.cdiv(filled, COLUMNS)
    each = tl.cdiv(tiles, tl.num_programs(1))
    first = tl.minimum(tl.program_id(1) * each, tiles)
    last = tl.minimum(first + each, tiles)
    return first, last, tl.maximum(tl.minimum(filled // COLUMNS, last), first)


@triton.jit
def _sum_of_exponentials(
    a,
    keys,
    total,
    row_max,
    first,
    last,
    whole,
    filled,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLAIN: tl.constexpr,
    PRECISION: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
):
    """Base-2 logarithm of `total` 2^row_max (PLAIN: `total`) and the exponentials of rows `a` with some tiles of keys."""
    within = tl.arange(0, COLUMNS)
    offset = within[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    keys += first.to(tl.int64) * COLUMNS * WIDTH
    for _ in range(first, whole):
        b = tl.load(keys + offset)  # [COLUMNS, WIDTH]
        keys += COLUMNS * WIDTH
        exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [ROWS, COLUMNS]
        total, row_max = add_exponentials(total, row_max, exponents, PLAIN, POLYNOMIAL)
    for tile in range(whole, last):
        there = tile * COLUMNS + within < filled
        b = tl.load(keys + offset, mask=there[:, None], other=0.0)  # [COLUMNS, WIDTH]
        exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [ROWS, COLUMNS]
        exponents = tl.where(there[None, :], exponents, float("-inf"))
        total, row_max = add_exponentials(total, row_max, exponents, PLAIN, 0)
    return tl.math.log2(total) if PLAIN else tl.math.log2(total) + row_max


@triton.jit
def _log_sums(
    x,
    keys,
    filled,
    plain,
    positive,
    out,
    rows,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
):
    """Base-2 logarithm of the sum of exponentials of one block of rows over its share of the tiles.

    The first share also includes the positive.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    place = row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    a = tl.load(x + place, mask=inside[:, None], other=0.0)  # [ROWS, WIDTH]
    own = tl.load(positive + row, mask=inside, other=0.0)  # [ROWS]
    count = tl.load(filled).to(tl.int32)
    first, last, whole = _span(count, COLUMNS)
    start = tl.zeros((ROWS,), tl.float32) + tl.where(tl.program_id(1) == 0, 1.0, 0.0)
    if tl.load(plain) != 0:
        start *= tl.math.exp2(own)
        lse = _sum_of_exponentials(
            a, keys, start, own, first, last, whole, count, WIDTH, COLUMNS, True, PRECISION, POLYNOMIAL
        )
    else:
        lse = _sum_of_exponentials(
            a, keys, start, own, first, last, whole, count, WIDTH, COLUMNS, False, PRECISION, 0
        )
    tl.store(out + tl.program_id(1).to(tl.int64) * rows + row, lse, mask=inside)


@triton.jit
def _weighted_keys(
    x,
    keys,
    filled,
    lse,
    out,
    rows,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum_j p_ij queue_j for one block of rows over its share of the tiles."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    width = tl.arange(0, WIDTH)
    a = tl.load(x + row[:, None] * WIDTH + width[None, :], mask=inside[:, None], other=0.0)
    # Other dtypes have the range of float32, in which long keys need every bit of the logarithm.
    GAIN: tl.constexpr = FLOAT16_GAIN if x.dtype.element_ty == tl.float16 else 0.0
    level = tl.load(lse + row, mask=inside, other=0.0) - GAIN
    count = tl.load(filled).to(tl.int32)
    first, last, whole = _span(count, COLUMNS)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    within = tl.arange(0, COLUMNS)
    offset = within[:, None] * WIDTH + width[None, :]
    keys += first.to(tl.int64) * COLUMNS * WIDTH
    for _ in range(first, whole):
        b = tl.load(keys + offset)  # [COLUMNS, WIDTH]
        keys += COLUMNS * WIDTH
        p = tl.math.exp2(
            tl.dot(a, tl.trans(b), input_precision=PRECISION) - level[:, None]
        )  # [ROWS, COLUMNS]
        total = tl.dot(p.to(b.dtype), b, total, input_precision=PRECISION)  # [ROWS, WIDTH]
    for tile in range(whole, last):
        there = tile * COLUMNS + within < count
        b = tl.load(keys + offset, mask=there[:, None], other=0.0)  # [COLUMNS, WIDTH]
        p = tl.math.exp2(
            tl.dot(a, tl.trans(b), input_precision=PRECISION) - level[:, None]
        )  # [ROWS, COLUMNS]
        p = tl.where(there[None, :], p, 0.0)
        total = tl.dot(p.to(b.dtype), b, total, input_precision=PRECISION)  # [ROWS, WIDTH]
    place = (tl.program_id(1).to(tl.int64) * rows + row)[:, None] * WIDTH + width[None, :]
    tl.store(out + place, total * tl.math.exp2(-GAIN), mask=inside[:, None])

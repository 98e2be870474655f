# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""Sum of exponentials of each row: a program computes a block of rows against all columns.

The columns of a shard are added up first, then the shards in their order. The sums over the rank's own shards can
therefore be computed while the rows of other ranks are in transfer (`local_sums`), without changing the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.patch_nt_xent.rows import shard_rows
from pscl_kernels.patch_nt_xent.triton import tiling
from pscl_kernels.patch_nt_xent.triton.runs import runs
from pscl_kernels.patch_nt_xent.triton.tiling import add_exponentials, negatives, walk, wanted_kind


def local_sums(x: Tensor, label: Tensor, positive: Tensor, temperature: Tensor) -> Tensor:
    """(2, shards, 2N): each own row's sum over each own shard, relative to 2^maximum, and the maxima unless plain."""
    rows = len(x)
    shards = triton.cdiv(rows, shard_rows(rows))
    sums = positive.new_empty((2, shards, rows))
    if rows:
        _launch(x.unsqueeze(0), label.unsqueeze(0), positive, 0, None, sums, temperature)
    return sums


def log_sums(
    x: Tensor, label: Tensor, positive: Tensor, rank: int, local: Tensor | None, temperature: Tensor
) -> Tensor:
    """See `operation.Backend`."""
    out = torch.empty_like(positive)
    if positive.numel():
        _launch(x, label, positive, rank, local, out, temperature)
    return out


def _launch(
    x: Tensor,
    label: Tensor,
    positive: Tensor,
    rank: int,
    local: Tensor | None,
    out: Tensor,
    temperature: Tensor,
) -> None:
    ranks, rows, width = x.shape
    side = shard_rows(rows)
    shards = triton.cdiv(rows, side)
    config = tiling.forward_config(width, x.element_size() * 8, tiling.chip(x.device))
    columns, _ = runs(label, rank, config.rows)
    for plain, tau in tiling.kinds(temperature):
        _log_sums[(triton.cdiv(rows, config.rows),)](
            x[rank],
            x,
            label[rank],
            label,
            *columns,
            positive,
            out if local is None else local,
            out,
            tau,
            rows,
            side,
            ranks * shards,
            rank * shards,
            0 if local is None else shards,
            WIDTH=width,
            ROWS=config.rows,
            COLUMNS=config.columns,
            PLAIN=plain,
            BY_SHARD=out.ndim == 3,
            PRECISION=tiling.precision(x.dtype),
            POLYNOMIAL=config.polynomial,
            num_warps=config.warps,
            num_stages=config.stages,
            maxnreg=config.registers,
        )


# Compiled once for any number of ranks and shards.
@triton.jit(do_not_specialize=["shards", "own_shard", "known_shards"])
def _log_sums(
    own_x,
    x,
    own_label,
    label,
    low,
    high,
    present,
    positive,
    known,
    out,
    tau,
    rows,
    side,
    shards,
    own_shard,
    known_shards,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLAIN: tl.constexpr,
    BY_SHARD: tl.constexpr,
    PRECISION: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
):
    """Base-2 logarithm of the sum of exponentials over positive and negatives, for one block of own rows.

    BY_SHARD: instead, the negatives' sum over each shard, and its maximum, (2, shards, rows). `known` has these results
    for `known_shards` shards from `own_shard` on, which are not computed again. Does nothing if `tau` asks
    for the other kind of sums.
    """
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
    start = tl.load(positive + row, mask=inside, other=0.0)  # [ROWS]
    row_max = start
    if PLAIN:
        total = tl.math.exp2(start)
    else:
        total = tl.full((ROWS,), 1.0, tl.float32)
    offset = tl.arange(0, COLUMNS)[:, None] * WIDTH + width[None, :]
    per_rank = tl.cdiv(rows, side)
    blocks = tl.num_programs(0)
    for shard in range(shards):
        block = (first_row * 0 + shard // per_rank) * rows + shard % per_rank * side  # first row, 64-bit
        # Pointers to a tile, to which the loops add one number: fewer instructions than the addresses of each tile.
        tile_x = x + block * WIDTH + offset  # [COLUMNS, WIDTH]
        computed = (shard < own_shard) | (shard >= own_shard + known_shards)
        place = (first_row * 0 + shard - own_shard) * rows + row
        loaded = inside & (computed == 0)
        part = tl.load(known + place, mask=loaded, other=0.0)  # [ROWS]
        part_max = start
        if not PLAIN:
            maximum = tl.load(known + known_shards.to(tl.int64) * rows + place, mask=loaded, other=0.0)
            part_max = tl.where(computed, start, maximum)
        count = tl.load(present + shard)
        low_column = tl.load(low + shard * blocks + tl.program_id(0))
        high_column = tl.load(high + shard * blocks + tl.program_id(0))
        for half in range(2):
            dense_first, dense, masked_first, before_gap, gap, masked = walk(
                half, low_column, high_column, count, lowest == highest, (lowest < 0) & computed, COLUMNS
            )
            for i in range(dense):
                b = tl.load(tile_x + (dense_first + i) * COLUMNS * WIDTH)  # [COLUMNS, WIDTH]
                exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [ROWS, COLUMNS]
                part, part_max = add_exponentials(part, part_max, exponents, PLAIN, POLYNOMIAL)
            for i in range(masked):
                tile = (masked_first + i + tl.where(i < before_gap, 0, gap)) * COLUMNS
                column = tile + tl.arange(0, COLUMNS)
                there = (column < count)[:, None]
                b = tl.load(tile_x + tile * WIDTH, mask=there, other=0.0)  # [COLUMNS, WIDTH]
                exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [ROWS, COLUMNS]
                exponents = tl.where(negatives(own, label + block, column, count), exponents, float("-inf"))
                part, part_max = add_exponentials(part, part_max, exponents, PLAIN, 0)
        if BY_SHARD:
            tl.store(out + place, part, mask=inside)
            if not PLAIN:
                tl.store(out + shards.to(tl.int64) * rows + place, part_max, mask=inside)
        elif PLAIN:
            total += part
        else:
            new = tl.maximum(row_max, part_max)
            total = total * tl.math.exp2(row_max - new) + part * tl.math.exp2(part_max - new)
            row_max = new
    if not BY_SHARD:
        lse = tl.math.log2(total)
        if not PLAIN:
            lse += row_max
        tl.store(out + row, lse, mask=inside)

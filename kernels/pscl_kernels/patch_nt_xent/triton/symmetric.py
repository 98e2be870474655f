# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""Sum of exponentials of each row of one rank; each pair of tiles is computed once.

One launch per shard of columns. A program computes a block of rows, of this shard or an earlier one. It adds up the
sums of its rows in registers and writes the sums of the columns to a workspace (blocks, columns of the shard), which is
then added to the columns' rows in a fixed order. There are no atomics. The workspace has at most
2 SHARD_PAIRS / (rows of a block) numbers per row, for any number of rows.

Inside the shard of its own rows, a block is paired with itself, for its rows only, and with the next half of the blocks
in a ring, so that all programs have equal work:

      rows \\ columns  0  1  2  3  4
                  0   s  x  x
                  1      s  x  x             s: itself    x: computed, for rows and columns
                  2         s  x  x
                  3   x        s  x
                  4   x  x        s
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.patch_nt_xent.rows import shard_rows
from pscl_kernels.patch_nt_xent.triton import tiling
from pscl_kernels.patch_nt_xent.triton.tiling import negatives, walk


def log_sums(x: Tensor, label: Tensor, positive: Tensor, config: tiling.Config) -> Tensor:
    """As `forward.log_sums` with plain sums, for the rows of one rank: x (2N, width), label and positive (2N,)."""
    rows, width = x.shape
    side = shard_rows(rows)
    low, high, present = tiling.runs(label.unsqueeze(0), label, config.rows, side)
    sums = torch.exp2(positive)
    workspace = positive.new_empty((triton.cdiv(rows, config.rows), side))
    for shard in range(triton.cdiv(rows, side)):
        begin, end = shard * side, min((shard + 1) * side, rows)
        blocks = triton.cdiv(end, config.rows)
        _pair_sums[(blocks,)](
            x,
            label,
            low[shard],
            high[shard],
            present[shard],
            sums,
            workspace,
            rows,
            begin,
            end,
            side,
            WIDTH=width,
            ROWS=config.rows,
            COLUMNS=config.columns,
            PRECISION=tiling.precision(x.dtype),
            num_warps=config.warps,
            num_stages=config.stages,
            maxnreg=config.registers,
        )
        sums[begin:end] += workspace[:blocks, : end - begin].sum(0)
    return sums.log2_()


@triton.jit
def _clip(first, number, begin, end):
    """The part of `number` tiles from `first` on that is in [begin, end): first and number."""
    last = tl.minimum(first + number, end)
    first = tl.maximum(first, begin)
    return first, tl.maximum(last - first, 0)


@triton.jit
def _add(total, exponents, out, kept):
    """Add a tile's exponentials to the row sums, and store the column sums if `kept`."""
    e = tl.math.exp2(exponents)
    tl.store(out, tl.sum(e, 0), mask=kept)
    return total + tl.sum(e, 1)


@triton.jit(do_not_specialize=["begin", "end"])
def _pair_sums(
    x, label, low, high, present, sums, workspace, rows, begin, end, side,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of rows against the columns [begin, end) of one shard: adds to row sums, writes column sums."""
    program = tl.program_id(0)
    first_row = program.to(tl.int64) * ROWS
    row = first_row + tl.arange(0, ROWS)
    inside = row < rows
    width = tl.arange(0, WIDTH)
    every = tl.arange(0, COLUMNS)
    a = tl.load(
        x + first_row * WIDTH + tl.arange(0, ROWS)[:, None] * WIDTH + width[None, :],
        mask=inside[:, None],
        other=0.0,
    )
    own = tl.load(label + row, mask=inside, other=0)
    takes_part = own < 0
    lowest, highest = tl.min(own, 0), tl.max(own, 0)
    total = tl.zeros((ROWS,), tl.float32)

    out = workspace + program.to(tl.int64) * side
    tiles = tl.cdiv(end - begin, COLUMNS)
    for cleared in range(tiles):
        place = cleared * COLUMNS + every
        tl.store(out + place, tl.zeros((COLUMNS,), tl.float32), mask=place < end - begin)
    # Skipped columns stay zero; other threads overwrite the rest.
    tl.debug_barrier()

    count = tl.load(present)
    per_block = ROWS // COLUMNS
    blocks = tl.cdiv(end - begin, ROWS)
    position = program - begin // ROWS  # within this shard; negative in an earlier one
    in_shard = position >= 0
    following = (blocks - 1) // 2 + tl.where((blocks % 2 == 0) & (position < blocks // 2), 1, 0)
    block = x + begin.to(tl.int64) * WIDTH
    offset = every[:, None] * WIDTH + width[None, :]
    # If not all rows of the block take part, every tile is masked.
    whole = highest < 0
    low_column = tl.where(whole, tl.load(low + program), 0)
    high_column = tl.where(whole, tl.load(high + program), count)
    for step in range(6):
        # The block itself, the next blocks, and those after the wrap-around; each in two halves.
        span = step // 2
        from_tile = tl.where(span == 0, position, tl.where(span == 1, position + 1, 0)) * per_block
        to_tile = tl.where(span == 0, position + 1, position + 1 + following - tl.where(span == 1, 0, blocks))
        to_tile = to_tile * per_block
        from_tile = tl.where(in_shard, from_tile, 0)
        to_tile = tl.where(in_shard, tl.minimum(to_tile, tiles), tl.where(span == 1, tiles, 0))
        gives_to_columns = span > 0
        dense_first, dense, masked_first, before_gap, gap, masked = walk(
            step % 2, low_column, high_column, count, lowest == highest, lowest < 0, COLUMNS
        )
        after_first = masked_first + before_gap + gap
        after = tl.maximum(masked - before_gap, 0)
        before_gap = tl.minimum(before_gap, masked)
        dense_first, dense = _clip(dense_first, dense, from_tile, to_tile)
        masked_first, before_gap = _clip(masked_first, before_gap, from_tile, to_tile)
        after_first, after = _clip(after_first, after, from_tile, to_tile)
        for i in range(dense):
            tile = (dense_first + i).to(tl.int64) * COLUMNS
            b = tl.load(block + tile * WIDTH + offset)
            exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)
            total = _add(total, exponents, out + tile + every, gives_to_columns)
        for i in range(before_gap + after):
            tile = tl.where(i < before_gap, masked_first + i, after_first + i - before_gap)
            column = tile * COLUMNS + every
            there = column < count
            b = tl.load(block + tile.to(tl.int64) * COLUMNS * WIDTH + offset, mask=there[:, None], other=0.0)
            exponents = tl.dot(a, tl.trans(b), input_precision=PRECISION)
            pairs = negatives(own, label + begin, column, count) & takes_part[:, None]
            exponents = tl.where(pairs, exponents, float("-inf"))
            total = _add(total, exponents, out + column, there & gives_to_columns)
    tl.store(sums + row, tl.load(sums + row, mask=inside, other=0.0) + total, mask=inside)

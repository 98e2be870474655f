# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The columns that are not negatives of a block of rows, and what else each pass needs of the columns, in one launch."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.patch_nt_xent.rows import SHARD_PAIRS, shard_rows

STEPS = (2 * SHARD_PAIRS).bit_length()
"""Steps of a binary search in the rows of a shard."""

GAIN = tl.constexpr(1024.0)
"""Factor on the weights W of the backward pass, which are in [0, 2]: keeps small ones normal in float16."""


class Runs(NamedTuple):
    """For each shard of columns and block of own rows: the columns, counted within the shard, of the block's groups."""

    low: Tensor  # (shards, blocks) int32
    high: Tensor  # (shards, blocks) int32
    present: Tensor  # (shards,) int32: how many columns take part


def runs(label: Tensor, rank: int, rows_per_block: int, lse: Tensor | None = None) -> tuple[Runs, Tensor]:
    """`Runs` of columns labelled (world, 2N) against the rows of `rank`; 2N > 0.

    With `lse` (world, 2N), also its reciprocal sums 2^-lse times GAIN, (world, 2N); otherwise the second result is empty.
    """
    ranks, rows = label.shape
    side = shard_rows(rows)
    shards, blocks = ranks * triton.cdiv(rows, side), triton.cdiv(rows, rows_per_block)
    low, high = (label.new_empty((shards, blocks), dtype=torch.int32) for _ in range(2))
    present = label.new_empty(shards, dtype=torch.int32)
    factor = label.new_empty(0, dtype=torch.float32) if lse is None else torch.empty_like(lse)
    _runs[(blocks, shards)](
        label[rank], label, low, high, present, lse, factor, rows, side, ROWS=rows_per_block, STEPS=STEPS
    )
    return Runs(low, high, present), factor


@triton.jit
def _runs(
    own_label,
    label,
    low,
    high,
    present,
    lse,
    factor,
    rows,
    side,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """`Runs` of one block of rows against one shard, and this block's part of the shard's factors."""
    block, shard, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    per_rank = tl.cdiv(rows, side)
    size = tl.minimum(side, rows - shard % per_rank * side)
    first = (shard // per_rank).to(tl.int64) * rows + shard % per_rank * side
    lowest = tl.load(own_label + block * ROWS)
    highest = tl.load(own_label + tl.minimum((block + 1) * ROWS, rows) - 1)
    # Places of the first label that is not below `lowest`, not below `highest` + 1, and not below 0.
    number = tl.arange(0, 4)
    wanted = tl.where(number == 0, lowest, tl.where(number == 1, highest + 1, 0))
    begin = tl.zeros((4,), tl.int32)
    end = begin + size
    for _ in range(STEPS):
        middle = (begin + end) // 2
        less = tl.load(label + first + middle, mask=begin < end, other=0) < wanted
        less = less & (begin < end)
        begin, end = tl.where(less, middle + 1, begin), tl.where(less, end, middle)
    count = tl.sum(tl.where(number == 3, begin, 0), 0)
    begin = tl.minimum(begin, count)
    place = shard * blocks + block
    tl.store(low + place, tl.sum(tl.where(number == 0, begin, 0), 0))
    tl.store(high + place, tl.sum(tl.where(number == 1, begin, 0), 0))
    if block == 0:
        tl.store(present + shard, count)
    if lse is not None:
        for start in range(block * 128, size, blocks * 128):
            column = start + tl.arange(0, 128)
            exponent = tl.load(lse + first + column, mask=column < size, other=0.0)
            tl.store(factor + first + column, tl.math.exp2(-exponent) * GAIN, mask=column < size)

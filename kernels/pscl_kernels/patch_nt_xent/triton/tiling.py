# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""Tile sizes of the kernels, and the tiles of columns that a block of rows visits.

Because rows and columns are sorted by group, the columns of a shard that are not negatives of a block of rows are one
run [low, high), and columns that take no part come last, from `present` on. Column tiles inside the run are skipped if
the block has a single group; tiles cut by the run or by `present` are masked; the others need no mask. A block visits
its tiles from left to right in two halves, each with dense tiles and then masked ones:

      0        left    inner      outer   right         last    end      tiles
      |  dense  |masked|  skipped  |masked|    dense     |masked|
      '------- half 0 ---------------------''------ half 1 -----'

The terms of a row's sum and their order therefore do not depend on the other rows of its block.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.norms import NORM_FLOOR
from pscl_kernels.norms import SHRINK as SHRINK_ROWS

FLOOR = tl.constexpr(NORM_FLOOR)
SHRINK = tl.constexpr(SHRINK_ROWS)

PLAIN_ROWS = 8
"""Rows per program of the kernels that loop over rows only."""

SYMMETRIC_FORWARD = False
"""Whether the forward pass of one rank computes each pair of tiles once (`symmetric`) instead of twice (`forward`)."""


class Config(NamedTuple):
    """Tile size and launch options of one kernel."""

    rows: int  # rows of a program
    columns: int  # columns of a tile
    warps: int
    stages: int
    registers: int | None = (
        None  # maximum per thread; if None, the assembler may spill to fit another program
    )


def forward_config(width: int, bits: int) -> Config:
    """Tiling of `forward._log_sums` for rows of `width` (a power of two) numbers of `bits` bits."""
    if bits == 32:
        return Config(64, 32, 4, 2) if width <= 64 else Config(32, 64, 8, 2)
    if width <= 64:
        return Config(128, 64, 4, 2)
    return Config(128, 64, 8, 3) if width <= 256 else Config(64, 32, 8, 2)


def symmetric_config(width: int, bits: int) -> Config | None:
    """Tiling of `symmetric._pair_sums`, as above, or None if no tiling fits the registers.

    The number of rows is a multiple of the number of columns.
    """
    if bits == 32:
        return Config(64, 32, 4, 2, 255) if width <= 64 else None
    if width <= 64:
        return Config(128, 64, 4, 3)
    if width <= 128:
        return Config(128, 64, 8, 2)
    return Config(128, 32, 8, 2) if width <= 256 else Config(64, 32, 8, 2)


def backward_config(width: int, bits: int, warp_groups: bool) -> Config:
    """Tiling of `backward._weighted_negatives`, as above; `warp_groups` as `uses_warp_groups` says."""
    if bits == 32:
        return Config(32, 32, 4, 2) if width <= 64 else Config(32, 32, 8, 2)
    if width <= 64:
        # Two blocks of a warp group each alternate between products and exponentials.
        return Config(128, 64, 4 if warp_groups else 8, 2, 255)
    if width <= 128:
        return Config(128, 64, 8, 2)
    if width <= 256:
        # Two warp groups along 64 rows would compute each product of rows and columns twice.
        return Config(128, 32, 8, 2) if warp_groups else Config(64, 64, 8, 2)
    return Config(32, 64, 8, 2)


def uses_warp_groups(device: torch.device) -> bool:
    """Whether a warp group of 4 warps computes a product of 64 rows: compute capability 9.0 only."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def layout(q: Tensor) -> tuple[int, torch.dtype]:
    """See `operation.Backend`: widths are powers of two."""
    return max(16, triton.next_power_of_2(q.shape[1])), q.dtype


def on_device(scalar: Tensor, device: torch.device) -> Tensor:
    """0-d float32 copy on `device`; a value of the host is filled in, which does not wait and works in CUDA graphs."""
    if scalar.device == device:
        return scalar.float()
    return torch.full((), float(scalar), dtype=torch.float32, device=device)


def precision(dtype: torch.dtype) -> str:
    """Precision of matrix products: for float32, three TF32 products, which are close to float32."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


class Runs(NamedTuple):
    """For each shard of columns and block of own rows: the columns, counted within the shard, of the block's groups."""

    low: Tensor  # (shards, blocks) int32
    high: Tensor  # (shards, blocks) int32
    present: Tensor  # (shards,) int32: how many columns take part


def runs(label: Tensor, own_label: Tensor, rows_per_block: int, rows_per_shard: int) -> Runs:
    """`Runs` of columns labelled (world, 2N) against rows labelled (2N,)."""
    rows = len(own_label)
    missing = -rows % rows_per_shard
    # The last shard of each rank is padded with a label greater than all others.
    shards = torch.nn.functional.pad(label, (0, missing), value=1).view(-1, rows_per_shard)
    blocks = triton.cdiv(rows, rows_per_block)
    last = torch.arange(1, blocks + 1, device=label.device).mul_(rows_per_block).sub_(1).clamp_max_(rows - 1)
    first_label = own_label[::rows_per_block].expand(len(shards), -1).contiguous()
    last_label = own_label.index_select(0, last).expand(len(shards), -1).contiguous()
    present = (shards < 0).sum(1, keepdim=True)
    low = torch.searchsorted(shards, first_label).minimum(present)
    high = torch.searchsorted(shards, last_label, right=True).minimum(present)
    return Runs(low.int(), high.int(), present.squeeze(1).int())


@triton.jit
def norms(x):
    """max(norm, FLOOR) of rows x (rows, width) of float32; see `pscl_kernels.norms.row_norms`."""
    norm = tl.sqrt(tl.sum(x * x, 1))
    small = x * SHRINK
    norm = tl.where(norm == float("inf"), tl.sqrt(tl.sum(small * small, 1)) / SHRINK, norm)
    return tl.maximum(norm, FLOOR)


@triton.jit
def walk(half, low, high, present, single, alive, COLUMNS: tl.constexpr):
    """One half of the tiles of COLUMNS columns that a block of rows visits in a shard.

    single: the block has one group. alive: at least one of its rows takes part. Returns (first, number) of the dense
    tiles and (first, number before the gap, gap, number in all) of the masked ones.
    """
    left = low // COLUMNS
    right = tl.maximum(tl.cdiv(high, COLUMNS), left)
    inner = tl.minimum(tl.where(single, tl.cdiv(low, COLUMNS), right), right)
    outer = tl.minimum(tl.maximum(high // COLUMNS, inner), right)
    last = tl.maximum(right, present // COLUMNS)
    end = tl.maximum(tl.cdiv(present, COLUMNS), last)
    before = half == 0
    dense_first = tl.where(before, 0, right)
    dense = tl.where(before, left, last - right)
    masked_first = tl.where(before, left, last)
    before_gap = tl.where(before, inner - left, end - last)
    gap = tl.where(before, outer - inner, 0)
    masked = before_gap + tl.where(before, right - outer, 0)
    return dense_first, tl.where(alive, dense, 0), masked_first, before_gap, gap, tl.where(alive, masked, 0)


@triton.jit
def negatives(own_label, label, column, present):
    """(rows, columns) bool: which pairs of a tile are negatives, for rows that take part."""
    other = tl.load(label + column, mask=column < present, other=0)
    return (own_label[:, None] != other[None, :]) & (other < 0)[None, :]


@triton.jit
def add_exponentials(total, top, exponents, PLAIN: tl.constexpr):
    """Add a tile's exponentials to the row sums `total`, which are relative to 2^top unless PLAIN."""
    if PLAIN:
        total += tl.sum(tl.math.exp2(exponents), 1)
    else:
        new = tl.maximum(top, tl.max(exponents, 1))
        total = total * tl.math.exp2(top - new) + tl.sum(tl.math.exp2(exponents - new[:, None]), 1)
        top = new
    return total, top

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
from pscl_kernels.patch_nt_xent.operation import PLAIN_TEMPERATURE, is_plain

FLOOR = tl.constexpr(NORM_FLOOR)
SHRINK = tl.constexpr(SHRINK_ROWS)

PLAIN_FROM = tl.constexpr(PLAIN_TEMPERATURE)

ROUNDING = tl.constexpr(1.5 * 2.0**23)
"""A float32 plus this number is rounded to an integer."""

EXP2 = (0.99992806, 0.693261, 0.24261117, 0.05517142)
"""Coefficients of 2^x for |x| <= 1/2, from the constant on: the least relative error of this degree, 7.5e-5."""

EXP2_0, EXP2_1, EXP2_2, EXP2_3 = (tl.constexpr(x) for x in EXP2)

POLYNOMIAL_CHIPS = (9, 10)
"""Chips (major compute capability) on which the exponentials of rows up to D = 64 take longer than their products."""

PLAIN_ROWS = 8
"""Rows per program of the kernels that loop over rows only."""


MEAN_BLOCK = 8192
"""Rows that a program which adds up numbers of all rows reads at a time."""


class Config(NamedTuple):
    """Tile size and launch options of one kernel."""

    rows: int  # rows of a program
    columns: int  # columns of a tile
    warps: int
    stages: int
    registers: int | None = (
        None  # maximum per thread; if None, the assembler may spill to fit another program
    )
    polynomial: int = 0  # of 16 exponentials, how many are computed as `exp2_by_shares` does


def chip(device: torch.device) -> int:
    """Major compute capability of a device, 0 for one that is not a GPU."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def forward_config(width: int, bits: int, major: int) -> Config:
    """Tiling of `forward._log_sums` for rows of `width` (a power of two) numbers of `bits` bits on a `chip`."""
    if bits == 32:
        return Config(64, 32, 4, 2, 255) if width <= 64 else Config(32, 64, 8, 1)
    if width <= 64:
        return Config(128, 64, 4, 2, polynomial=5 if major in POLYNOMIAL_CHIPS else 0)
    if width <= 128 and major in POLYNOMIAL_CHIPS:
        # Two blocks of a warp group each alternate between products and exponentials.
        return Config(128, 64, 4, 2, polynomial=5)
    if width <= 256:
        # With 8 warps, only on 9.0 does the compiler compute one of the two kinds of exponentials for a column.
        return Config(128, 64, 8, 3, polynomial=3 if major == 9 else 0)
    return Config(64, 32, 8, 2)


def backward_config(width: int, bits: int, major: int) -> Config:
    """Tiling of `backward._weighted_negatives`, as above."""
    if bits == 32:
        return Config(32, 32, 4, 2) if width <= 64 else Config(32, 32, 8, 2)
    # On compute capability 9.0 only, a warp group of 4 warps computes a product of 64 rows.
    warp_groups = major == 9
    if width <= 64:
        # Two blocks, as above.
        return Config(128, 64, 4 if warp_groups else 8, 2, 255, 3 if warp_groups else 0)
    if width <= 128:
        return Config(128, 128, 8, 2, polynomial=2) if warp_groups else Config(128, 64, 8, 2)
    if width <= 256:
        # Two warp groups along 64 rows would compute each product of rows and columns twice.
        return Config(128, 32, 8, 2) if warp_groups else Config(64, 64, 8, 2)
    return Config(32, 64, 8, 2)


def kinds(temperature: Tensor) -> list[tuple[bool, Tensor | None]]:
    """Launches of a kernel with plain sums or running maxima: (PLAIN, temperature, if the kernel has to read it).

    For a temperature on the device both kernels are launched, and one of them finds that it has nothing to do.
    """
    plain = is_plain(temperature)
    return [(True, temperature), (False, temperature)] if plain is None else [(plain, None)]


def temperature_argument(temperature: Tensor) -> tuple[Tensor | None, float]:
    """A temperature as arguments of a kernel: a tensor on the device, or None and the number."""
    return (None, float(temperature)) if temperature.device.type == "cpu" else (temperature, 0.0)


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


@triton.jit
def wanted_kind(temperature, PLAIN: tl.constexpr):
    """Whether the temperature that `kinds` passed asks for the kernel with PLAIN."""
    # NaN asks for running maxima.
    return (tl.load(temperature).to(tl.float64) >= PLAIN_FROM) == PLAIN


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
def polynomial_exp2(x):
    """2^x for |x| < 126 by additions and multiplications, with a relative error of 7.5e-5; NaN stays NaN."""
    shifted = x + ROUNDING
    f = x - (shifted - ROUNDING)
    y = EXP2_3 * f + EXP2_2
    y = y * f + EXP2_1
    y = y * f + EXP2_0
    # The lowest bits of `shifted` are the integer nearest to x. A product, because a sum of bits would hide NaN.
    power = shifted.to(tl.int32, bitcast=True) * 0x800000 + 0x3F800000
    return y * power.to(tl.float32, bitcast=True)


@triton.jit
def exp2_by_shares(x, POLYNOMIAL: tl.constexpr):
    """2^x of a tile (rows, columns), POLYNOMIAL of 16 columns by a polynomial and the others by the special function unit.

    A thread of a warp group has whole columns of the accumulator: the compiler decides for each of its registers and
    computes one of the two.
    """
    if POLYNOMIAL == 0:
        return tl.math.exp2(x)
    else:
        column = tl.arange(0, x.shape[1])[None, :]
        chosen = (column % 2 == 1) & (column // 8 % 8 < POLYNOMIAL)
        return tl.where(chosen, polynomial_exp2(x), tl.math.exp2(x))


@triton.jit
def add_exponentials(total, row_max, exponents, PLAIN: tl.constexpr, POLYNOMIAL: tl.constexpr):
    """Add a tile's exponentials to the row sums `total`, which are relative to 2^row_max unless PLAIN."""
    if PLAIN:
        total += tl.sum(exp2_by_shares(exponents, POLYNOMIAL), 1)
    else:
        new = tl.maximum(row_max, tl.max(exponents, 1))
        total = total * tl.math.exp2(row_max - new) + tl.sum(tl.math.exp2(exponents - new[:, None]), 1)
        row_max = new
    return total, row_max

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""Similarity sampling in two Triton kernels.

`_tile_maxima` reads the patches once and keeps, for each template and tile of `TILE` patches, the greatest similarity and
its first patch. `_greedy`, one program per image, then handles the templates in order: each takes the kept patch of its
best tile. Only for later templates whose kept patch in that tile is the same one, the tile's similarities are computed
again, without the patches that are taken. Both kernels compute a tile by the same function, so they agree to the last bit.

Similarities are dot products with the templates as they are, divided by the norm of the patch. The norm of a template
changes neither the order of its similarities nor their ties, and products of 16-bit inputs stay exact.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.backends import computing_on
from pscl_kernels.norms import NORM_FLOOR
from pscl_kernels.norms import SHRINK as SHRINK_PATCHES

FLOOR = tl.constexpr(NORM_FLOOR)
SHRINK = tl.constexpr(SHRINK_PATCHES)

TILE = 128
"""Patches per tile."""

TEMPLATES = 32
"""Templates per matrix product: fewer than a warp group needs, so that all chips use the same instructions."""

WARPS = 8
"""Warps per program."""

MAXIMUM_BLOCK = {torch.float32: 16, torch.float16: 32, torch.bfloat16: 32}
"""Features per matrix product; more would need too many registers."""


@torch.library.custom_op("pscl_kernels::sample_similar_triton", mutates_args=())
def sample_similar(templates: Tensor, patches: Tensor, valid: Tensor | None) -> Tensor:
    """(B, T) int64 patches of `interface.sample_similar`."""
    batch, places, width = patches.shape
    count = templates.shape[-2]
    taken = torch.full((batch, count), -1, dtype=torch.int64, device=patches.device)
    if taken.numel() == 0 or places == 0:
        return taken
    tiles = triton.cdiv(places, TILE)
    templates = _shortened(templates).contiguous()
    block = block_of(width, patches.dtype)
    best = torch.empty((batch, count, tiles), dtype=torch.float32, device=patches.device)
    common = {
        "TILE": TILE,
        "TEMPLATES": TEMPLATES,
        "BLOCK": block,
        "MASKED": valid is not None,
        "PRECISION": "tf32x3" if patches.dtype == torch.float32 else "tf32",
    }
    arguments = (
        templates,
        patches,
        valid.contiguous().view(torch.uint8) if valid is not None else patches,
        best,
        torch.empty((batch, tiles, count), dtype=torch.int8, device=patches.device),
    )
    sizes = (places, count, width, tiles, count * width if templates.ndim == 3 else 0, *patches.stride())
    with computing_on(patches):
        # One dimension, because the others of a grid are limited to 65,535.
        _tile_maxima[(batch * tiles,)](*arguments, *sizes, **common, num_warps=WARPS)
        _greedy[(batch,)](
            *arguments,
            taken,
            *sizes,
            **common,
            TILES=triton.next_power_of_2(tiles),
            COUNT=triton.next_power_of_2(count),
            num_warps=WARPS,
            maxnreg=greedy_registers(block, patches.dtype),
        )
    return taken


@sample_similar.register_fake
def _(templates: Tensor, patches: Tensor, valid: Tensor | None) -> Tensor:
    return patches.new_empty((patches.shape[0], templates.shape[-2]), dtype=torch.int64)


def _shortened(templates: Tensor) -> Tensor:
    """Templates divided by a power of two each, so that products with long patches do not overflow."""
    if templates.dtype == torch.float16:
        return templates  # products of float16 do not overflow
    # Such a factor is exact: no choice depends on it.
    greatest = torch.linalg.vector_norm(templates, math.inf, -1, keepdim=True, dtype=torch.float32)
    return (templates * greatest.log2().ceil_().clamp_min_(0.0).neg_().exp2_()).to(templates)


def block_of(width: int, dtype: torch.dtype) -> int:
    """Features per step of a matrix product."""
    return min(MAXIMUM_BLOCK[dtype], max(16, triton.next_power_of_2(width)))


def greedy_registers(block: int, dtype: torch.dtype) -> int | None:
    """Limit on the registers of a thread of `_greedy`; without one the assembler stops at 80 for short rows, and spills."""
    return 128 if block == 16 and dtype != torch.float32 else None


@triton.jit
def _similarities(
    template,
    patch,
    valid,
    place,
    number,
    places,
    count,
    width,
    stride_place,
    stride_feature,
    TILE: tl.constexpr,
    TEMPLATES: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(TEMPLATES, TILE) cosines up to the templates' norms; -inf for a patch that is not valid, +inf for NaN.

    place: (TILE,) patches of one image, number: (TEMPLATES,) templates, from the image's first of each.
    """
    RANGE: tl.constexpr = patch.dtype.element_ty != tl.float16  # squares of float16 do not overflow
    there, wanted = place < places, number < count
    # 64-bit: an image of any strides may span 2^31 elements and more.
    start = patch + (place.to(tl.int64) * stride_place)[:, None]
    product = tl.zeros((TEMPLATES, TILE), tl.float32)
    square = tl.zeros((TILE,), tl.float32)
    small_square = tl.zeros((TILE,), tl.float32)
    for first in range(0, width, BLOCK):
        feature = first + tl.arange(0, BLOCK)
        inside = feature < width
        c = tl.load(
            start + (feature.to(tl.int64) * stride_feature)[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )  # [TILE, BLOCK]
        t = tl.load(
            template + number[:, None] * width + feature[None, :],
            mask=wanted[:, None] & inside[None, :],
            other=0.0,
        )  # [TEMPLATES, BLOCK]
        product = tl.dot(t, tl.trans(c), product, input_precision=PRECISION)  # [TEMPLATES, TILE]
        wide = c.to(tl.float32)
        square += tl.sum(wide * wide, 1)
        if RANGE:
            wide *= SHRINK
            small_square += tl.sum(wide * wide, 1)
    length = tl.sqrt(square)
    if RANGE:
        length = tl.where(length == float("inf"), tl.sqrt(small_square) / SHRINK, length)
    similarity = product / tl.where(length < FLOOR, FLOOR, length)[None, :]
    similarity = tl.where(similarity != similarity, float("inf"), similarity)
    usable = there
    if MASKED:
        usable = there & (tl.load(valid + place, mask=there, other=0) != 0)
    return tl.where(usable[None, :], similarity, float("-inf"))


@triton.jit
def _greatest(similarity, TILE: tl.constexpr):
    """Greatest value of each row of (TEMPLATES, TILE), and the first column that has it."""
    top = tl.max(similarity, 1)
    column = tl.arange(0, TILE)
    return top, tl.min(tl.where(similarity == top[:, None], column[None, :], TILE - 1), 1)


@triton.jit
def _tile_maxima(
    templates,
    patches,
    valid,
    best,
    first_of_tile,
    places,
    count,
    width,
    tiles,
    stride_templates,
    stride_image,
    stride_place,
    stride_feature,
    TILE: tl.constexpr,
    TEMPLATES: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """For one tile of one image, the greatest similarity of each template, and the first patch that has it.

    best (B, T, tiles), first_of_tile (B, tiles, T) counted within the tile.
    """
    tile = tl.program_id(0) % tiles
    image = (tl.program_id(0) // tiles).to(tl.int64)
    place = tile * TILE + tl.arange(0, TILE)
    for first in range(0, count, TEMPLATES):
        number = first + tl.arange(0, TEMPLATES)
        similarity = _similarities(
            templates + image * stride_templates,
            patches + image * stride_image,
            valid + image * places,
            place,
            number,
            places,
            count,
            width,
            stride_place,
            stride_feature,
            TILE,
            TEMPLATES,
            BLOCK,
            MASKED,
            PRECISION,
        )
        top, index = _greatest(similarity, TILE)
        tl.store(best + (image * count + number) * tiles + tile, top, mask=number < count)
        tl.store(
            first_of_tile + (image * tiles + tile) * count + number, index.to(tl.int8), mask=number < count
        )


@triton.jit
def _greedy(
    templates,
    patches,
    valid,
    best,
    first_of_tile,
    taken,
    places,
    count,
    width,
    tiles,
    stride_templates,
    stride_image,
    stride_place,
    stride_feature,
    TILE: tl.constexpr,
    TEMPLATES: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    TILES: tl.constexpr,
    COUNT: tl.constexpr,
):
    """taken (B, T): the choices of all templates, in order, in one image."""
    image = tl.program_id(0).to(tl.int64)
    templates += image * stride_templates
    patches += image * stride_image
    valid += image * places
    best += image * count * tiles
    taken += image * count
    first_of_tile += image * tiles * count
    every_tile = tl.arange(0, TILES)
    every_place = tl.arange(0, TILE)
    every = tl.arange(0, COUNT)
    for m in range(count):
        maxima = tl.load(
            best + m * tiles + every_tile, mask=every_tile < tiles, other=float("-inf")
        )  # [TILES]
        highest = tl.max(maxima, 0)
        tile = tl.min(tl.where((maxima == highest) & (every_tile < tiles), every_tile, TILES), 0)
        offset = tl.load(first_of_tile + tile * count + m).to(tl.int32)
        there = highest > float("-inf")
        chosen = tl.where(there, tile * TILE + offset, -1)
        tl.store(taken + m, chosen.to(tl.int64))

        # Later templates lose their greatest value in this tile only if it is that of the same patch.
        later = (every > m) & (every < count)
        other = tl.load(first_of_tile + tile * count + every, mask=later, other=-1).to(tl.int32)  # [COUNT]
        stale = later & (other == tl.where(there, offset, TILE))
        next_stale = tl.min(tl.where(stale, every, COUNT), 0)
        while next_stale < COUNT:
            place = tile * TILE + every_place
            used = (place == chosen).to(tl.int32)  # [TILE]
            for first in range(0, m, TEMPLATES):
                number = first + tl.arange(0, TEMPLATES)
                earlier = tl.load(taken + number, mask=number < m, other=-1).to(tl.int32)
                used += tl.sum((place[None, :] == earlier[:, None]).to(tl.int32), 0)
            # The same groups of templates as in the first pass.
            group = next_stale // TEMPLATES * TEMPLATES
            number = group + tl.arange(0, TEMPLATES)
            similarity = _similarities(
                templates,
                patches,
                valid,
                place,
                number,
                places,
                count,
                width,
                stride_place,
                stride_feature,
                TILE,
                TEMPLATES,
                BLOCK,
                MASKED,
                PRECISION,
            )
            similarity = tl.where((used > 0)[None, :], float("-inf"), similarity)
            write = (number > m) & (number < count)
            top, index = _greatest(similarity, TILE)
            tl.store(best + number * tiles + tile, top, mask=write)
            tl.store(first_of_tile + tile * count + number, index.to(tl.int8), mask=write)
            next_stale = tl.min(tl.where(stale & (every >= group + TEMPLATES), every, COUNT), 0)
        # The next template reads what other threads of this program have just written.
        tl.debug_barrier()

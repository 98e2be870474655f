"""Exact similarity sampling on CPUs with bfloat16 products, which are several times as fast as float32 ones.

A first pass computes all similarities from bfloat16 roundings and keeps the greatest for each template and tile of
`TILE` patches; the true one differs by at most `SLACK`. Each template then computes the similarities of the tiles with
the greatest values in full precision, until no other tile can contain its patch. If similarities are so alike that this
takes many steps, as for nearly equal patches, the method of `chunked` is used instead.
"""

import functools
import math

import torch
from torch import Tensor

from pscl_kernels.norms import NORM_FLOOR

TILE = 64
"""Patches per tile."""

TILES_PER_STEP = 2
"""Tiles per image whose similarities a template computes at a time."""

STEPS_PER_TEMPLATE = 4
"""Maximum number of steps, on average over the templates."""

CHUNK_PATCHES = 1280
"""Patches of one image whose similarities the first pass computes at a time."""

SLACK = 2**-7
"""Bound on the error of a similarity in [-1, 1]: three roundings to bfloat16, 2^-9 each, and those of float32 sums."""


@functools.cache
def is_fast() -> bool:
    """Whether this CPU has instructions for bfloat16 matrix products, and torch uses them."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(torch.backends.mkldnn.enabled) and any(
        capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16")
    )


def sample_similar(t: Tensor, patches: Tensor, valid: Tensor | None) -> Tensor | None:
    """(B, T) int64 patches of `interface.sample_similar`, or None if it would take too many steps.

    t: (B, T, D) unit templates in the dtype of the computation; patches (B, P, D); valid (B, P) or None. Also None if
    the square of a norm overflows.
    """
    batch, count, _ = t.shape
    bounds = _bounds(t, patches, valid)
    if bounds is None:
        return None
    # On the CPU like the patches, whatever the default device is.
    taken = torch.full((batch, count), -1, dtype=torch.int64, device="cpu")
    free = patches.new_ones(patches.shape[:2], dtype=torch.bool) if valid is None else valid.clone()
    budget = STEPS_PER_TEMPLATE * count
    for m in range(count):
        bound = bounds[:, m].float()
        best = t.new_full((batch,), -math.inf)
        choice = taken[:, m].clone()
        while True:
            top, tile = bound.topk(min(TILES_PER_STEP, bound.shape[1]))
            if not bool(((top[:, 0] + SLACK >= best) & (top[:, 0] > -math.inf)).any()):
                break
            if budget == 0:
                return None
            budget -= 1
            bound.scatter_(1, tile, -math.inf)
            value, patch = _best(t[:, m], patches, free, tile)
            better = (value > best) | ((value == best) & (patch < choice))
            best, choice = torch.where(better, value, best), torch.where(better, patch, choice)
        taken[:, m] = choice
        chosen = choice.clamp_min(0).unsqueeze(1)
        free.scatter_(1, chosen, free.gather(1, chosen).logical_and_(choice.unsqueeze(1) < 0))
    return taken


def _bounds(t: Tensor, patches: Tensor, valid: Tensor | None) -> Tensor | None:
    """(B, T, tiles) greatest similarity among the valid patches of each tile, bfloat16, to `SLACK`; NaN as infinity.

    None if the square of a norm overflows.
    """
    batch, places, width = patches.shape
    count, tiles = t.shape[1], -(-places // TILE)
    bounds = t.new_empty((batch, count, tiles), dtype=torch.bfloat16)
    unit = t.new_empty((CHUNK_PATCHES, width), dtype=torch.bfloat16)
    product = t.new_empty((CHUNK_PATCHES, count), dtype=torch.bfloat16)
    for image in range(batch):
        templates = t[image].bfloat16().T.contiguous()
        for first in range(0, places, CHUNK_PATCHES):
            x = patches[image, first : first + CHUNK_PATCHES]
            x = x if x.dtype in (torch.float32, torch.float64) else x.float()
            number, whole = len(x), -(-len(x) // TILE)
            inverse = _inverse_norm(x)
            if not bool(inverse.all()):
                return None
            torch.mul(x, inverse, out=unit[:number])
            torch.mm(unit[:number], templates, out=product[:number])
            if valid is not None:
                unusable = ~valid[image, first : first + CHUNK_PATCHES].unsqueeze(1)
                product[:number].masked_fill_(unusable, -math.inf)
            product[number : whole * TILE] = -math.inf
            greatest = product[: whole * TILE].view(whole, TILE, count).amax(1)
            bounds[image, :, first // TILE : first // TILE + whole] = greatest.T
    return bounds.masked_fill_(bounds.isnan(), math.inf)


def _best(template: Tensor, patches: Tensor, free: Tensor, tile: Tensor) -> tuple[Tensor, Tensor]:
    """Greatest exact similarity of one template per image, (B, D), among the free patches (B, P) of tiles (B, K).

    Returns it, (B,), and the first patch that has it, (B,). NaN counts as infinity.
    """
    batch, places, width = patches.shape
    # Ascending, so that the first of equals has the lowest index.
    place = (tile.sort(1).values.unsqueeze(2) * TILE + torch.arange(TILE, device="cpu")).view(batch, -1)
    usable = place < places
    place.clamp_max_(places - 1)
    usable.logical_and_(free.gather(1, place))
    image = torch.arange(batch, device="cpu").unsqueeze(1)
    if patches.is_contiguous():
        everywhere = patches.view(batch * places, width)
        x = everywhere.index_select(0, (place + image * places).view(-1)).view(*place.shape, width)
    else:
        x = patches[image, place]
    x = x.to(template.dtype)
    inverse = _inverse_norm(x)
    # Each row is summed separately, so equal patches have equal bits. x is a copy.
    similarity = x.mul_(template.unsqueeze(1)).sum(2, keepdim=True).mul_(inverse).squeeze(2)
    similarity = similarity.nan_to_num_(nan=math.inf, posinf=math.inf).masked_fill_(~usable, -math.inf)
    value, offset = similarity.max(1)
    return value, place.gather(1, offset.unsqueeze(1)).squeeze(1)


def _inverse_norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(NORM_FLOOR)
    return norm.reciprocal_()

"""Similarity sampling without the matrix of similarities, for any device that torch runs on.

A first pass over the patches keeps the greatest similarity for each template and each tile of `TILE` patches. Then each
template, in order and for all images at once, selects the tile with the greatest value, computes the similarities of
that tile again, takes the best free patch, and updates the tile's values without it. No step depends on a value, so the
host never waits for an accelerator. CPUs with fast bfloat16 products use less work (`bounded`).
"""

import math

import torch
from torch import Tensor

from pscl_kernels.norms import row_norms
from pscl_kernels.sample_similar import bounded

TILE = 128
"""Patches per tile; larger tiles save memory in the first pass and cost work in the second."""

CHUNK_PATCHES = 1024
"""Patches of all images whose similarities the first pass computes at a time (at least one tile per image)."""

ALIGNMENT = 16
"""Templates are padded to a multiple of this number. Matrix products of such a width give a patch the same bits at any
position and with any number of patches, so that both passes agree and copies of a patch tie."""


@torch.library.custom_op("pscl_kernels::sample_similar_chunked", mutates_args=())
def sample_similar(templates: Tensor, patches: Tensor, valid: Tensor | None) -> Tensor:
    """(B, T) int64 patches of `interface.sample_similar`."""
    batch, places, _ = patches.shape
    count = templates.shape[-2]
    taken = torch.full((batch, count), -1, dtype=torch.int64, device=patches.device)
    if taken.numel() == 0 or places == 0:
        return taken
    with torch.no_grad(), torch.autocast(patches.device.type, enabled=False):
        t = _computed(templates)
        t = t / row_norms(t)
        if patches.device.type == "cpu" and bounded.is_fast():
            found = bounded.sample_similar(t.expand(batch, count, -1), patches, valid)
            if found is not None:
                return found
        t = torch.nn.functional.pad(t, (0, 0, 0, -count % ALIGNMENT))
        t = t.transpose(-1, -2).contiguous().expand(batch, -1, t.shape[-2])
        best = _tile_maxima(t, patches, valid)

        for m in range(count):
            _choose(m, taken, best, t, patches, valid)
    return taken


@sample_similar.register_fake
def _(templates: Tensor, patches: Tensor, valid: Tensor | None) -> Tensor:
    return patches.new_empty((patches.shape[0], templates.shape[-2]), dtype=torch.int64)


def _choose(m: int, taken: Tensor, best: Tensor, t: Tensor, patches: Tensor, valid: Tensor | None) -> None:
    """Write the choice of template m into `taken` (B, T), and remove it from the tile values `best` (B, tiles, T)."""
    image = torch.arange(len(patches), device=patches.device)
    tile = best[:, :, m].argmax(1)
    index = tile.mul(TILE).unsqueeze(1) + torch.arange(TILE, device=patches.device)
    inside = index.clamp_max(patches.shape[1] - 1)
    excluded = (index.unsqueeze(2) == taken.unsqueeze(1)).any(2).logical_or_(index >= patches.shape[1])
    if valid is not None:
        excluded.logical_or_(~valid[image.unsqueeze(1), inside])
    similarity = _similarities(t, patches[image.unsqueeze(1), inside])
    similarity.masked_fill_(excluded.unsqueeze(2), -math.inf)
    value, offset = similarity[:, :, m].max(1)
    taken[:, m] = torch.where(value == -math.inf, -1, inside[image, offset])
    similarity[image, offset] = -math.inf
    best[image, tile] = similarity.amax(1)


def _computed(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _similarities(t: Tensor, patches: Tensor) -> Tensor:
    """(B, patches, T) cosines of unit templates t (B, D, T) and patches (B, patches, D)."""
    x = _computed(patches)
    return torch.bmm(x, t).mul_(row_norms(x).reciprocal_())


def _tile_maxima(t: Tensor, patches: Tensor, valid: Tensor | None) -> Tensor:
    """(B, tiles, T) greatest similarity of each template among the valid patches of each tile."""
    batch, places, _ = patches.shape
    tiles, count = -(-places // TILE), t.shape[2]
    best = t.new_empty((batch, tiles, count))
    step = max(1, CHUNK_PATCHES // (TILE * batch))
    for first in range(0, tiles, step):
        last = min(first + step, tiles)
        span = slice(first * TILE, min(last * TILE, places))
        similarity = _similarities(t, patches[:, span])
        if valid is not None:
            similarity.masked_fill_(~valid[:, span].unsqueeze(2), -math.inf)
        missing = (last - first) * TILE - similarity.shape[1]
        if missing:
            similarity = torch.nn.functional.pad(similarity, (0, 0, 0, missing), value=-math.inf)
        torch.amax(similarity.view(batch, last - first, TILE, count), 2, out=best[:, first:last])
    return best

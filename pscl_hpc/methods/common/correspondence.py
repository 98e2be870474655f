"""Corresponding patches of both views: by geometry, or by the similarity of features.

Shape legend: B images, C channels, H W patches of a map, P = H * W, M pairs per image.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.views import ViewGeometry, paired_patches, partner_patches

Correspondence = Literal["geometric", "feature"]

_SIMILARITIES_AT_ONCE = 1 << 24
"""Limit of similarities in memory at a time. It does not change results: images are matched independently."""


class Matches(NamedTuple):
    """Pairs of patches, row-major indices."""

    query: Tensor
    """Patches of view q, int64 (B, M)."""
    key: Tensor
    """Their partners in view k, int64 (B, M)."""
    valid: Tensor
    """Whether the pair exists, bool (B, M). Indices of other pairs are in range, but arbitrary."""


def match_patches(rule: Correspondence, geometry: ViewGeometry, query: Tensor, key: Tensor) -> Matches:
    """Pairs of patches of two maps of the same images, both with the grid (H, W). Without gradient.

    Args:
        rule: ``geometric``: patches that show the same material; each patch of view k with a partner gives one pair.
            ``feature``: each patch of view q with the most similar patch of view k.
        geometry: Geometry of view k; used by ``geometric``.
        query: Backbone features of view q, (B, C, H, W); used by ``feature``.
        key: Backbone features of view k, (B, C, H, W).

    Raises:
        ValueError: the maps have different shapes.
    """
    if query.shape != key.shape:
        raise ValueError(
            f"maps of both views must have the same shape, got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    batch, _, height, width = query.shape
    patches = torch.arange(height * width, device=query.device).expand(batch, -1)
    if rule == "geometric":
        return Matches(
            partner_patches(geometry, patches, height, width),
            patches,
            paired_patches(geometry, height, width),
        )
    return Matches(patches, most_similar_patches(query, key), torch.ones_like(patches, dtype=torch.bool))


@torch.no_grad()
def most_similar_patches(query: Tensor, key: Tensor) -> Tensor:
    """For each patch of view q the patch of view k with the largest cosine similarity, int64 (B, P); the first of
    equals.

    This is the correspondence of DenseCL (CVPR 2021, section 3.3). It compares features of the backbone, not
    projections. A zero vector has similarity 0.

    Args:
        query: (B, C, H, W).
        key: (B, C, H', W').
    """
    wanted, offered = (F.normalize(patch_map.flatten(2).float(), dim=1) for patch_map in (query, key))
    at_once = max(1, _SIMILARITIES_AT_ONCE // max(1, wanted.shape[2] * offered.shape[2]))
    found = []
    for q, k in zip(torch.split(wanted, at_once), torch.split(offered, at_once), strict=True):
        with torch.autocast(q.device.type, enabled=False):
            similarity = q.transpose(1, 2) @ k
        best = similarity.amax(dim=2, keepdim=True)
        # argmax may return any of the equals on some devices, so the lowest index is computed explicitly.
        numbers = torch.arange(similarity.shape[2], device=q.device)
        found.append(torch.where(similarity == best, numbers, similarity.shape[2] - 1).amin(dim=2))
    return torch.cat(found)

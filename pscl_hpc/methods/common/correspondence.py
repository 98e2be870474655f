"""Which patch of view k shows what a patch of view q shows: by geometry, or by the features themselves.

Shape legend: B images, C channels, H W patches of a map, P = H * W, M pairs per image.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.methods.common.precision import without_autocast
from pscl_hpc.views import ViewGeometry, paired_patches, partner_patches

Correspondence = Literal["geometric", "feature"]

_SIMILARITIES_AT_ONCE = 1 << 24
"""Similarities that exist at a time; images are matched independently, so it changes no number."""


class Matches(NamedTuple):
    """Pairs of patches, row-major numbers."""

    query: Tensor
    """Patches of view q, int64 (B, M)."""
    key: Tensor
    """Their partners in view k, int64 (B, M)."""
    valid: Tensor
    """Whether the pair exists, bool (B, M); the patches of one that does not are in range and mean nothing."""


def match_patches(rule: Correspondence, geometry: ViewGeometry, query: Tensor, key: Tensor) -> Matches:
    """Pairs of patches of two maps of the same images, of one grid (H, W). No gradient flows.

    Args:
        rule: ``geometric``: patches that show the same material, from the views' geometry. Each patch of view k that has
            a partner gives one pair. ``feature``: each patch of view q with the most similar patch of view k.
        geometry: How view k was made; used by ``geometric``.
        query: Backbone features of view q, (B, C, H, W); used by ``feature``.
        key: Of view k, (B, C, H, W).
    """
    if query.shape != key.shape:
        raise ValueError(f"maps of two views must have one shape, not {query.shape} and {key.shape}")
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
    """For each patch of view q the patch of view k of greatest cosine similarity, int64 (B, P).

    Of equals the one of lowest number. This is DenseCL's correspondence (CVPR 2021, section 3.3), on the features of
    the backbone, not on their projections. A zero vector has similarity 0.

    Args:
        query: (B, C, H, W).
        key: (B, C, H', W').
    """
    wanted, offered = (F.normalize(patch_map.flatten(2).float(), dim=1) for patch_map in (query, key))
    at_once = max(1, _SIMILARITIES_AT_ONCE // max(1, wanted.shape[2] * offered.shape[2]))
    found = []
    for q, k in zip(torch.split(wanted, at_once), torch.split(offered, at_once), strict=True):
        with without_autocast(q.device):
            similarity = q.transpose(1, 2) @ k
        best = similarity.amax(dim=2, keepdim=True)
        # argmax of a boolean gives any of the equals on some devices; the lowest number is asked for explicitly.
        numbers = torch.arange(similarity.shape[2], device=q.device)
        found.append(torch.where(similarity == best, numbers, similarity.shape[2] - 1).amin(dim=2))
    return torch.cat(found)

"""Similarity sampling by its definition: all similarities in float64, one template at a time.

The oracle of the tests.
"""

import math

import torch
from torch import Tensor


def sample_similar(templates: Tensor, patches: Tensor, valid: Tensor | None) -> Tensor:
    """(B, T) int64 patches of `interface.sample_similar`."""
    batch, places, _ = patches.shape
    t, c = _unit(templates.double()), _unit(patches.double())
    similarity = torch.einsum("btd,bpd->btp", t.expand(batch, *t.shape[-2:]), c)
    taken = torch.full((batch, similarity.shape[1]), -1, dtype=torch.int64, device=patches.device)
    for image in range(batch):
        free = (
            torch.ones(places, dtype=torch.bool, device=patches.device)
            if valid is None
            else valid[image].clone()
        )
        for template in range(similarity.shape[1]):
            if free.any():
                patch = similarity[image, template].masked_fill(~free, -math.inf).argmax()
                taken[image, template] = patch
                free[patch] = False
    return taken


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(1e-8)
    return unit

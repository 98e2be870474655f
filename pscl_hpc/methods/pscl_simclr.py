"""PSCL-SimCLR: contrast of images on the bottleneck, and of sampled patches at every decoder scale.

Sci. Rep. 2025, doi 10.1038/s41598-025-32855-5; docs/methods.md.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from pscl_hpc.methods.base import METHODS, MethodOutput, PatchSample, Views
from pscl_hpc.methods.common.patches import gather_patches
from pscl_hpc.methods.common.pscl import AnnotatedPscl, Pscl
from pscl_hpc.methods.common.pscl_config import AnnotatedPatchConfig
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import Features
from pscl_hpc.seeding import Draws
from pscl_hpc.views import partner_patches
from pscl_kernels import patch_nt_xent, patch_similarity_stats


class PsclSimclrConfig(AnnotatedPatchConfig):
    """PSCL: patch-sampled contrast at every decoder scale, negatives from the batch (Sci. Rep. 2025)."""

    name: Literal["pscl-simclr"] = "pscl-simclr"
    display_name: ClassVar[str] = "PSCL-SimCLR"


@METHODS.register(PsclSimclrConfig)
class PsclSimclr(AnnotatedPscl):
    """PSCL with negatives from the batch."""

    config: PsclSimclrConfig

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """See :func:`in_batch_embedding`."""
        query, key = self.trunk(views.query), self.trunk(views.key)
        samples = draws.once("samples", lambda: self.sample_patches(views, key, draws))
        return in_batch_embedding(self, views, query, key, samples, measure)

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """See :func:`in_batch_loss`."""
        return in_batch_loss(self, embedding, measure)


def in_batch_embedding(
    method: Pscl,
    views: Views,
    query: Features,
    key: Features,
    samples: tuple[PatchSample, ...],
    measure: bool,
) -> Embedding:
    """Projections of images, and of the sampled patches of each scale with their classes.

    Args:
        method: Heads and settings.
        views: The images.
        query: Maps of view q.
        key: Maps of view k.
        samples: Patches of each scale, coarse to fine.
        measure: Also what is only logged.
    """
    found = {"q": method.global_head(query.bottleneck), "k": method.global_head(key.bottleneck)}
    for scale, sample in enumerate(samples):
        height, width = key.scales[scale].shape[2:]
        key_patches = sample.key_patches.clamp_min(0)
        query_patches = partner_patches(views.geometry, key_patches, height, width)
        head = method.patch_heads[scale]
        found[f"scale{scale}/q"] = head(gather_patches(query.scales[scale], query_patches))
        found[f"scale{scale}/k"] = head(gather_patches(key.scales[scale], key_patches))
        found[f"scale{scale}/groups"] = sample.groups
        if measure:
            found[f"scale{scale}/purity"] = method.sample_purity(views, sample, height, width)
    return Embedding(found, references=views.references)


def in_batch_loss(method: Pscl, embedding: Embedding, measure: bool) -> MethodOutput:
    """``(1 - r) * image loss + r * mean over scales of the patch loss`` with r = ``patch_weight``.

    Args:
        method: Settings.
        embedding: From :func:`in_batch_embedding`.
        measure: Also compute the terms that are only logged.
    """
    image_loss = _contrast(method, embedding.images["q"], embedding.images["k"], None)
    terms = {"image/loss": image_loss.detach()}
    patch_loss = torch.zeros_like(image_loss)
    for scale in range(len(method.patch_heads)):
        q, k, groups = (
            embedding.images[f"scale{scale}/{name}"].flatten(0, 1) for name in ("q", "k", "groups")
        )
        loss = _contrast(method, q, k, groups)
        patch_loss = patch_loss + method.scale_weights[scale] * loss / len(method.scale_weights)
        terms[f"scale{scale}/loss"] = loss.detach()
        if measure:
            positive, negative = patch_similarity_stats(q.detach(), k.detach(), groups)
            terms |= {f"scale{scale}/positive": positive, f"scale{scale}/negative": negative}
            terms |= method.sampling_terms(scale, embedding)
    ratio = method.config.patch_weight
    return MethodOutput((1 - ratio) * image_loss + ratio * patch_loss, terms)


def _contrast(method: Pscl, q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
    return patch_nt_xent(
        q,
        k,
        groups,
        temperature=method.config.temperature,
        process_group=method.process_group,
        backend=method.backend,
    )

"""PSCL-MoCo: momentum keys, queues of images and of class prototypes at every scale.

Sci. Rep. 2025, doi 10.1038/s41598-025-32855-5; docs/methods.md. Shape legend: B images, C classes, T templates (k per
class), D width of a projection, Q entries of a queue.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.config import Count, Fraction
from pscl_hpc.methods.base import METHODS, MethodOutput, PatchSample, Setting, Views
from pscl_hpc.methods.common.momentum import (
    KeyQueue,
    MomentumConfig,
    MomentumEncoder,
    at_least_float32,
    momentum_at,
)
from pscl_hpc.methods.common.patches import gather_patches
from pscl_hpc.methods.common.pscl import AnnotatedPscl
from pscl_hpc.methods.common.pscl_config import AnnotatedPatchConfig
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import Features, Trunk
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import sum_over_ranks, whole_loss
from pscl_hpc.views import partner_patches
from pscl_kernels import queue_info_nce

RELEASED_BATCH = 9
"""Images per step, including the reference, for which the decays were chosen."""


class PsclMocoConfig(AnnotatedPatchConfig):
    """PSCL with momentum keys, and queues of images and class prototypes as negatives (Sci. Rep. 2025)."""

    name: Literal["pscl-moco"] = "pscl-moco"
    display_name: ClassVar[str] = "PSCL-MoCo"
    templates_per_class: Count = 30
    """Template patches per class at the coarsest scale."""
    momentum: MomentumConfig = MomentumConfig()
    """Update of the key encoder."""
    queue_steps: Count = 56
    """Length of the queues in steps; 504 images with the released batch of 8 images and a reference."""
    image_production_batch_decay: Fraction = 0.2
    """Target of a queued image of the same production batch, to the power of its age in steps."""
    patch_production_batch_decay: Fraction = 0.5
    """Target of a queued prototype of the same class and production batch, to the power of its age in steps."""
    patch_class_decay: Fraction = 0.2
    """Target of a queued prototype of the same class, to the power of its age in steps. It is added to the target of
    ``patch_production_batch_decay``."""
    scale_targets: bool = True
    """Multiply the targets of the queue by 9 / (images per step), so that their sum does not depend on the batch size
    (9 images, including the reference, in the release). false: as released; the sum, and with it the weight of targets
    other than the patch's own partner, grows with the batch."""
    normalise_targets: bool = True
    """Divide the targets of a patch or image by their sum. false: as released; those with many related entries in the
    queue have more weight."""
    normalise_prototypes: bool = True
    """Scale prototypes to length 1, like all keys. false: the plain mean, as released."""
    queue_references: bool = False
    """Also queue the image keys of references, as released: each reference then meets its own old keys as negatives in
    every step. Class prototypes of references are always queued."""


@METHODS.register(PsclMocoConfig)
class PsclMoco(AnnotatedPscl):
    """PSCL with negatives and partial positives from queues."""

    config: PsclMocoConfig

    def __init__(self, trunk: Trunk, config: PsclMocoConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        self.momentum_trunk = MomentumEncoder(trunk)
        self.momentum_global_head = MomentumEncoder(self.global_head)
        self.momentum_patch_heads = MomentumEncoder(self.patch_heads)
        capacity = config.queue_steps * setting.images_per_step
        self.image_queue = KeyQueue(capacity, config.projection)
        self.prototype_queues = nn.ModuleList(
            KeyQueue(capacity, config.projection, self.classes) for _ in trunk.maps.scales
        )
        self.target_scale = RELEASED_BATCH / setting.images_per_step if config.scale_targets else 1.0

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """Projections of images, and of the sampled patches of each scale with class and share, and their keys."""
        query = self.trunk(views.query)
        samples, keys = draws.once("keys", lambda: self._keys(views, draws, measure))
        found = {"q": self.global_head(query.bottleneck), **keys}
        for scale, sample in enumerate(samples):
            height, width = query.scales[scale].shape[2:]
            patches = partner_patches(views.geometry, sample.key_patches.clamp_min(0), height, width)
            found[f"scale{scale}/q"] = self.patch_heads[scale](gather_patches(query.scales[scale], patches))
        return Embedding(found, references=views.references)

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """``(1 - r) * image loss + r * patch loss`` with r = ``patch_weight``.

        The patch loss is the mean over the patches of all scales, weighted by scale and by the purity of the template.
        Both losses are 0, without gradient, in the first step, when the queues are empty.
        """
        parts, counts, terms = [self._image_part(embedding)], [], {}
        for scale in range(len(self.patch_heads)):
            parts.append(self._patch_part(scale, embedding))
            valid = embedding.images[f"scale{scale}/groups"] >= 0
            counts.append(valid.sum())
            if measure:
                q, k = (embedding.images[f"scale{scale}/{name}"] for name in ("q", "k"))
                similarity = F.cosine_similarity(q.detach(), k, dim=2)
                terms[f"scale{scale}/positive"] = similarity[valid].mean()
                terms |= self.sampling_terms(scale, embedding)
        image_loss, *patch_losses = whole_loss(torch.stack(parts), self.process_group).unbind()
        terms["image/loss"] = image_loss.detach()
        patches = sum_over_ranks(torch.stack(counts), self.process_group)
        shares = (patches / patches.sum().clamp_min(1)).to(image_loss).unbind()
        patch_loss = torch.zeros_like(image_loss)
        for scale, (loss, share) in enumerate(zip(patch_losses, shares, strict=True)):
            patch_loss = patch_loss + self.scale_weights[scale] * share * loss
            terms[f"scale{scale}/loss"] = loss.detach()
        ratio = self.config.patch_weight
        return MethodOutput((1 - ratio) * image_loss + ratio * patch_loss, terms)

    @torch.no_grad()
    def key_features(self, views: Views) -> Features:
        """See :class:`Method`: the maps of the key encoder."""
        features: Features = self.momentum_trunk(views.key)
        return features

    def sample_patches(self, views: Views, key: Features, draws: Draws) -> tuple[PatchSample, ...]:
        """See :class:`PatchSampler`; patches are compared by the projections of the key encoder."""
        return self.sampler(views, key, self.momentum_patch_heads.module, draws)

    def after_step(self, progress: float) -> None:
        """See :class:`Method`."""
        momentum = momentum_at(self.config.momentum, progress)
        self.momentum_trunk.follow(self.trunk, momentum)
        self.momentum_global_head.follow(self.global_head, momentum)
        self.momentum_patch_heads.follow(self.patch_heads, momentum)
        for queue in (self.image_queue, *self.prototype_queues):
            cast(KeyQueue, queue).advance(self.process_group)

    @torch.no_grad()
    def _keys(
        self, views: Views, draws: Draws, measure: bool
    ) -> tuple[tuple[PatchSample, ...], dict[str, Tensor]]:
        """The sampled patches, and what has no gradient: keys, classes, shares and production batches."""
        key = self.key_features(views)
        found = {
            "k": self.momentum_global_head(key.bottleneck),
            "production batches": views.production_batches,
        }
        samples = self.sample_patches(views, key, draws)
        for scale, sample in enumerate(samples):
            patches = gather_patches(key.scales[scale], sample.key_patches.clamp_min(0))
            found[f"scale{scale}/k"] = self.momentum_patch_heads.module[scale](patches)
            found[f"scale{scale}/groups"] = sample.groups
            found[f"scale{scale}/shares"] = sample.shares
            if measure:
                grid = key.scales[scale].shape[2:]
                found[f"scale{scale}/purity"] = self.sample_purity(views, sample, *grid)
        return samples, found

    def _image_part(self, embedding: Embedding) -> Tensor:
        """This rank's part of the image loss. Stages the image keys."""
        q, k, production_batches = (embedding.images[name] for name in ("q", "k", "production batches"))
        queue = self.image_queue.rows()
        same = self.target_scale * self.config.image_production_batch_decay ** queue.ages.float()
        part = queue_info_nce(
            q,
            k,
            queue.keys,
            groups=torch.zeros_like(production_batches),
            queue_groups=queue.groups,
            subgroups=production_batches,
            queue_subgroups=queue.production_batches,
            same_weight=same,
            normalise_targets=self.config.normalise_targets,
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )
        groups = torch.zeros_like(production_batches)
        if not self.config.queue_references:
            groups[: embedding.references] = -1
        self.image_queue.stage(F.normalize(at_least_float32(k), dim=1), groups, production_batches)
        return part

    def _patch_part(self, scale: int, embedding: Embedding) -> Tensor:
        """This rank's part of the loss of one scale. Stages the class prototypes."""
        found = embedding.images
        q, k, groups, shares = (found[f"scale{scale}/{name}"] for name in ("q", "k", "groups", "shares"))
        production_batches = found["production batches"]
        stored = cast(KeyQueue, self.prototype_queues[scale])
        queue = stored.rows()
        ages = queue.ages.float()
        weights = class_weights(groups >= 0, shares, self.classes)
        present = (groups >= 0).view(weights.shape)
        part = queue_info_nce(
            q.flatten(0, 1),
            k.flatten(0, 1),
            queue.keys,
            groups=groups.flatten(),
            queue_groups=queue.groups,
            subgroups=production_batches.repeat_interleave(q.shape[1]),
            queue_subgroups=queue.production_batches,
            same_weight=self.target_scale * self.config.patch_production_batch_decay**ages,
            any_weight=self.target_scale * self.config.patch_class_decay**ages,
            # The mean weight in a class is 1, so that a class counts by its number of patches.
            row_weights=(weights * present.sum(dim=2, keepdim=True)).flatten(),
            normalise_targets=self.config.normalise_targets,
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )
        unit = F.normalize(at_least_float32(k), dim=2).view(*weights.shape, -1)
        with torch.autocast(unit.device.type, enabled=False):
            prototypes = torch.einsum("bck,bckd->bcd", weights.to(unit), unit)
        if self.config.normalise_prototypes:
            prototypes = F.normalize(prototypes, dim=2)
        classes = torch.arange(self.classes, device=k.device).expand(len(k), -1)
        stored.stage(prototypes, torch.where(present.any(dim=2), classes, -1), production_batches)
        return part


def class_weights(valid: Tensor, shares: Tensor, classes: int) -> Tensor:
    """Weight of each patch within its class and image, (B, C, k): the share of the class in the template's patch.

    They sum to 1 over the patches of a class that exist, and are 0 where there is none. Arguments as in
    :class:`PatchSample`, (B, T).
    """
    # The small constant gives weights to a class without a matching patch, too (template_rule: released).
    shares = torch.where(valid, shares + 1e-6, 0.0).view(len(valid), classes, -1)
    return shares / shares.sum(dim=2, keepdim=True).clamp_min(1e-12)

"""DenseCL (Wang et al., CVPR 2021, arXiv 2011.09157) on the bottleneck."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.config import Count, Fraction, Positive
from pscl_hpc.methods.base import METHODS, Method, MethodConfig, MethodOutput, Setting, Views
from pscl_hpc.methods.common.correspondence import most_similar_patches
from pscl_hpc.methods.common.momentum import (
    KeyQueue,
    MomentumConfig,
    MomentumEncoder,
    at_least_float32,
    momentum_at,
)
from pscl_hpc.methods.common.patches import gather_patches, patches_of
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import GlobalHead, Trunk
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import whole_loss
from pscl_kernels import queue_info_nce


class DenseClConfig(MethodConfig):
    """DenseCL on the bottleneck: MoCo of images and of the most similar patches (Wang et al., CVPR 2021)."""

    name: Literal["densecl"] = "densecl"
    display_name: ClassVar[str] = "DenseCL"
    temperature: Positive = 0.2
    """Temperature of both losses."""
    dense_weight: Fraction = 0.5
    """Weight of the patch loss; the image loss has ``1 - dense_weight``."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of both heads, at most the width of the bottleneck."""
    momentum: MomentumConfig = MomentumConfig()
    """Update of the key encoder. The paper has 0.999."""
    queue_steps: Count = 16
    """Length of both queues in steps; one key per image."""
    smallest_batch: ClassVar[int] = 1


@METHODS.register(DenseClConfig)
class DenseCl(Method):
    """Contrast of whole images and of all patches of the bottleneck.

    The bottleneck replaces the last map of the paper's ResNet. The decoder is not trained.
    """

    config: DenseClConfig

    def __init__(self, trunk: Trunk, config: DenseClConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        channels = trunk.maps.bottleneck.channels
        hidden = min(config.hidden, channels)
        self.global_head = GlobalHead(channels, hidden=hidden, projection=config.projection)
        self.dense_head = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, config.projection, 1)
        )
        self.momentum_trunk = MomentumEncoder(trunk)
        self.momentum_global_head = MomentumEncoder(self.global_head)
        self.momentum_dense_head = MomentumEncoder(self.dense_head)
        capacity = config.queue_steps * setting.images_per_step
        self.queue = KeyQueue(capacity, config.projection)
        self.dense_queue = KeyQueue(capacity, config.projection)

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """Projections of images and patches of view q, and the momentum keys of view k.

        The positive of a patch of view q is the projection of the patch of view k with the most similar feature.
        """
        features = self.trunk.encode(views.query)[-1]
        keys = draws.once("keys", lambda: self._keys(views.key, features.detach()))
        q, patches = self.global_head(features), patches_of(self.dense_head(features))
        return Embedding({"q": q, "patches": patches, **keys})

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """``(1 - w) * image loss + w * patch loss`` with w = ``dense_weight`` (equation 3).

        The negatives of patches are the pooled projections of images of earlier steps (sections 3.2 and 3.3). The loss
        is 0, without gradient, in the first step.
        """
        found = embedding.images
        parts = (
            self._contrast(found["q"], found["k"], self.queue),
            self._contrast(found["patches"].flatten(0, 1), found["partners"].flatten(0, 1), self.dense_queue),
        )
        self.queue.stage(F.normalize(at_least_float32(found["k"]), dim=1))
        self.dense_queue.stage(F.normalize(found["pooled"], dim=1))
        image_loss, patch_loss = whole_loss(torch.stack(parts), self.process_group).unbind()
        weight = self.config.dense_weight
        terms = {"image/loss": image_loss.detach(), "patches/loss": patch_loss.detach()}
        return MethodOutput((1 - weight) * image_loss + weight * patch_loss, terms)

    @torch.no_grad()
    def _keys(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        """Momentum keys of images ``k`` (B, D), of the partners of all patches of the map ``query`` (B, H * W, D), and
        the patch keys ``pooled`` over an image (B, D)."""
        features = self.momentum_trunk.module.encode(images)[-1]
        patches = self.momentum_dense_head(features)
        return {
            "k": self.momentum_global_head(features),
            "partners": gather_patches(patches, most_similar_patches(query, features)),
            "pooled": at_least_float32(patches).mean(dim=(2, 3)),
        }

    def _contrast(self, q: Tensor, k: Tensor, queue: KeyQueue) -> Tensor:
        rows = queue.rows()
        return queue_info_nce(
            q,
            k,
            rows.keys,
            groups=torch.zeros(len(q), dtype=torch.int64, device=q.device),
            queue_groups=rows.groups,
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )

    def after_step(self, progress: float) -> None:
        """See :class:`Method`."""
        momentum = momentum_at(self.config.momentum, progress)
        self.momentum_trunk.follow(self.trunk, momentum)
        self.momentum_global_head.follow(self.global_head, momentum)
        self.momentum_dense_head.follow(self.dense_head, momentum)
        self.queue.advance(self.process_group)
        self.dense_queue.advance(self.process_group)

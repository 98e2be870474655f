"""MoCo v2 (He et al., CVPR 2020; Chen et al., arXiv 2003.04297) on the pooled bottleneck."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import Count, Positive
from pscl_hpc.methods.base import METHODS, Method, MethodConfig, MethodOutput, Setting, Views
from pscl_hpc.methods.common.momentum import (
    KeyQueue,
    MomentumConfig,
    MomentumEncoder,
    at_least_float32,
    momentum_at,
)
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import GlobalHead, Trunk
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import whole_loss
from pscl_kernels import queue_info_nce


class MocoConfig(MethodConfig):
    """MoCo v2 on the pooled bottleneck: momentum keys and a queue of negatives (He et al., CVPR 2020)."""

    name: Literal["moco"] = "moco"
    display_name: ClassVar[str] = "MoCo"
    temperature: Positive = 0.2
    """Temperature of InfoNCE."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the head, at most the width of the bottleneck."""
    momentum: MomentumConfig = MomentumConfig()
    """Update of the key encoder. The paper's 0.999 is for runs of 100,000 steps and more."""
    queue_steps: Count = 16
    """Length of the queue in steps. If the queue is longer than the archive, every image meets its own old keys as
    negatives."""
    smallest_batch: ClassVar[int] = 1


@METHODS.register(MocoConfig)
class Moco(Method):
    """Image-level contrast with the keys of earlier steps. The decoder is not trained.

    The shuffled batch normalisation of the paper is not needed: statistics are computed over the whole batch and do not
    reveal which images a key was computed with.
    """

    config: MocoConfig

    def __init__(self, trunk: Trunk, config: MocoConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        self.global_head = GlobalHead(
            trunk.maps.bottleneck.channels, hidden=config.hidden, projection=config.projection
        )
        self.momentum_trunk = MomentumEncoder(trunk)
        self.momentum_head = MomentumEncoder(self.global_head)
        self.queue = KeyQueue(config.queue_steps * setting.images_per_step, config.projection)

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """Projections of view q, and momentum keys of view k."""
        q = self.global_head(self.trunk.encode(views.query)[-1])
        return Embedding({"q": q, "k": draws.once("keys", lambda: self._keys(views.key))})

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """InfoNCE of each image of view q with its momentum key of view k against the queue.

        The loss is 0, without gradient, in the first step, when the queue is empty.
        """
        q, k = embedding.images["q"], embedding.images["k"]
        queue = self.queue.rows()
        part = queue_info_nce(
            q,
            k,
            queue.keys,
            groups=torch.zeros(len(q), dtype=torch.int64, device=q.device),
            queue_groups=queue.groups,
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )
        self.queue.stage(F.normalize(at_least_float32(k), dim=1))
        loss = whole_loss(part, self.process_group)
        return MethodOutput(loss, {"image/loss": loss.detach()})

    @torch.no_grad()
    def _keys(self, images: Tensor) -> Tensor:
        keys: Tensor = self.momentum_head(self.momentum_trunk.module.encode(images)[-1])
        return keys

    def after_step(self, progress: float) -> None:
        """See :class:`Method`."""
        momentum = momentum_at(self.config.momentum, progress)
        self.momentum_trunk.follow(self.trunk, momentum)
        self.momentum_head.follow(self.global_head, momentum)
        self.queue.advance(self.process_group)

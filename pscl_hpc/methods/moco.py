"""MoCo v2 (He et al. 2020, Chen et al. 2020) on the pooled bottleneck: momentum keys, negatives from a queue."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import Count, Positive
from pscl_hpc.methods.base import METHODS, Method, MethodConfig, MethodOutput, Setting, Views
from pscl_hpc.methods.common.momentum import MomentumConfig, MomentumEncoder, momentum_at
from pscl_hpc.methods.common.precision import at_least_float32
from pscl_hpc.methods.common.queue import KeyQueue
from pscl_hpc.models import GlobalHead, Trunk
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import whole_loss
from pscl_kernels import queue_info_nce


class MocoConfig(MethodConfig):
    """MoCo v2 on the pooled bottleneck (He et al. 2020, Chen et al. 2020)."""

    name: Literal["moco"] = "moco"
    display_name: ClassVar[str] = "MoCo"
    temperature: Positive = 0.2
    """Temperature of InfoNCE."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the head, at most the width of the bottleneck."""
    momentum: MomentumConfig = MomentumConfig()
    """How the key encoder follows. The paper's 0.999 is for runs of a hundred thousand steps and more."""
    queue_steps: Count = 16
    """The queue holds the images of so many steps. An archive smaller than the queue stands in it several times over,
    and every image is then its own negative."""
    smallest_batch: ClassVar[int] = 1


@METHODS.register(MocoConfig)
class Moco(Method):
    """Image-level contrast with the keys of earlier steps.

    The original's shuffled batch normalisation is not needed: statistics are those of the whole batch and do not reveal
    which images a key was computed with.
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

    def forward(self, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        """InfoNCE of each image of view q with its momentum key of view k against the queue.

        0, without gradient, at the first step, whose queue is empty.
        """
        q = self.global_head(self.trunk.encode(views.query)[-1])
        k = self._keys(views.key)
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

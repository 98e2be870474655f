"""MoCo v2 (He et al. 2020, Chen et al. 2020) on the pooled bottleneck: momentum keys, negatives from a queue."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import MocoConfig, PretrainConfig
from pscl_hpc.methods.base import Method, MethodOutput, Setting, Views
from pscl_hpc.methods.momentum import MomentumEncoder, momentum_at
from pscl_hpc.methods.precision import at_least_float32
from pscl_hpc.methods.queue import KeyQueue, images_per_step
from pscl_hpc.models import GlobalHead, UNet
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import whole_loss
from pscl_kernels import queue_info_nce


class Moco(Method):
    """Image-level contrast with the keys of earlier steps.

    The shuffling of batch normalisation of the original is not needed: statistics are those of the whole batch, so that
    they do not tell which images a key was computed with.

    Args:
        trunk: The U-Net; its encoder is trained.
        config: Method settings.
        images_per_step: Images of one optimiser step over all ranks.
        backend: Backend of the contrastive operations.
    """

    def __init__(
        self, trunk: UNet, config: MocoConfig, *, images_per_step: int, backend: str = "auto"
    ) -> None:
        super().__init__(trunk)
        self.config = config
        self.backend = backend
        self.global_head = GlobalHead(
            trunk.config.widths[-1], hidden=config.hidden, projection=config.projection
        )
        self.momentum_trunk = MomentumEncoder(trunk)
        self.momentum_head = MomentumEncoder(self.global_head)
        self.queue = KeyQueue(config.queue_steps * images_per_step, config.projection)

    @classmethod
    def build(cls, trunk: UNet, config: PretrainConfig, setting: Setting) -> Moco:
        """See :class:`Method`."""
        assert isinstance(config.method, MocoConfig)
        return cls(
            trunk, config.method, images_per_step=images_per_step(config), backend=config.runtime.kernels
        )

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

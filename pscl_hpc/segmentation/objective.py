"""Objectives of fine-tuning: from windows to a loss.

Shape legend: B windows, C channels, h w pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.distributed as dist
from torch import Tensor, nn

from pscl_hpc.config import FinetuneConfig
from pscl_hpc.models import SegmentationNet
from pscl_hpc.seeding import Slots, torch_generator
from pscl_hpc.segmentation.losses import SegmentationLoss
from pscl_hpc.training import StepLoss, autocast
from pscl_hpc.views import jitter


class Objective(nn.Module, ABC):
    """Loss of the windows of a step.

    With several ranks it is the loss of the windows of all ranks, equal on each, and its backward pass gives this
    rank's share of the gradient. Modules added to the network are trained at the decoder's rate and stored in
    checkpoints, but not in the model.

    Args:
        net: The network that is trained, validated and written.
        loss: Loss on annotated pixels.
        config: The run.
    """

    process_group: dist.ProcessGroup | None = None
    """The ranks that train together; None for one process."""

    def __init__(self, net: SegmentationNet, loss: SegmentationLoss, config: FinetuneConfig) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.config = config

    @property
    def extra(self) -> nn.ModuleDict:
        """Modules that are trained besides the network."""
        return nn.ModuleDict()

    @abstractmethod
    def forward(self, step: int, images: Tensor, targets: Tensor, slots: Slots | None = None) -> StepLoss:
        """Loss of step ``step``, counted from 0.

        Args:
            step: Keys all random draws.
            images: (B, C, h, w) in 0..1, without intensity changes.
            targets: (B, h, w) class indices, 255 where not annotated.
            slots: Slots of the windows in the batch of all ranks; by default they are all of it.
        """

    def perturbed(
        self, images: Tensor, step: int, slots: Slots | None = None, purpose: str = "jitter"
    ) -> Tensor:
        """The images with random intensity changes for this step and purpose."""
        return jitter(images, self.config.jitter, torch_generator(self.config.seed, purpose, step), slots)


class Supervised(Objective):
    """Cross entropy and Dice on the annotated windows."""

    def forward(self, step: int, images: Tensor, targets: Tensor, slots: Slots | None = None) -> StepLoss:
        """See :class:`Objective`."""
        images = self.perturbed(images, step, slots)
        with autocast(images.device, self.config.runtime):
            logits = self.net(images)
        terms = self.loss(logits, targets, self.process_group)
        return StepLoss(terms.total, {"ce": terms.cross_entropy, "dice_loss": terms.dice})

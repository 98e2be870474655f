"""What a fine-tuning step descends: from windows to a loss. The loop knows this interface and no loss by name.

Shape legend: B windows, C channels, h w pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from pscl_hpc.models import SegmentationNet
from pscl_hpc.seeding import torch_generator
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.losses import SegmentationLoss
from pscl_hpc.training import autocast
from pscl_hpc.views import jitter


class StepLoss(NamedTuple):
    """The loss of a step, and its parts for the log."""

    total: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """Loss of the windows of a step.

    Modules that it adds to the network are its own: they learn at the decoder's rate and are part of a checkpoint, but
    not of the model.

    Args:
        net: The network that is trained, validated and written.
        loss: Loss on annotated pixels.
        config: The run.
    """

    def __init__(self, net: SegmentationNet, loss: SegmentationLoss, config: FinetuneConfig) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.config = config

    @property
    def extra(self) -> nn.ModuleDict:
        """What is trained besides the network."""
        return nn.ModuleDict()

    @abstractmethod
    def forward(self, step: int, images: Tensor, targets: Tensor) -> StepLoss:
        """Loss of step ``step``, counted from 0.

        Args:
            step: Keys all random draws.
            images: (B, C, h, w) in 0..1, without intensity changes.
            targets: (B, h, w) class indices, 255 where not annotated.
        """

    def perturbed(self, images: Tensor, step: int, purpose: str = "jitter") -> Tensor:
        """The images with random intensity changes of this step and purpose."""
        return jitter(images, self.config.jitter, torch_generator(self.config.seed, purpose, step))


class Supervised(Objective):
    """Cross entropy and Dice on the annotated windows."""

    def forward(self, step: int, images: Tensor, targets: Tensor) -> StepLoss:
        """See :class:`Objective`."""
        images = self.perturbed(images, step)
        with autocast(images.device, self.config.runtime):
            logits = self.net(images)
        terms = self.loss(logits, targets)
        return StepLoss(terms.total, {"ce": terms.cross_entropy, "dice_loss": terms.dice})

"""Semi-supervised fine-tuning with two decoders that teach each other (IDEAL, arXiv 2210.15075, figure 2b).

Shape legend: B windows, K classes that are not ignored, h w pixels.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.archive import IGNORE_INDEX
from pscl_hpc.config import Fraction
from pscl_hpc.models import BilinearDecoder, SegmentationNet
from pscl_hpc.seeding import Slots, derive_seed
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.losses import Objective, SegmentationLoss
from pscl_hpc.segmentation.semi_supervised.base import SEMI_SUPERVISED, SemiSupervisedConfig
from pscl_hpc.training import StepLoss, autocast
from pscl_hpc.training.reduce import whole_loss


class CrossConsistencyConfig(SemiSupervisedConfig):
    """Cross-consistency of two decoders on annotated and unlabelled images (IDEAL, figure 2b)."""

    name: Literal["ideal"] = "ideal"
    display_name: ClassVar[str] = "IDEAL"
    ramp: Fraction = 0.4
    """Share of the steps over which the weight rises; 0: full weight from the start."""
    threshold: Fraction = 0.8
    """Minimum probability of a decoder's most probable class for it to teach the other decoder."""


@SEMI_SUPERVISED.register(CrossConsistencyConfig)
class CrossConsistency(Objective):
    """One encoder, two decoders, two perturbations of the same windows.

    The trunk's decoder gets one perturbation, a decoder with bilinear upsampling the other. Both are trained on the
    annotated pixels; on all pixels, annotated or not, the confident predictions of each are targets of the other.
    Targets have no gradient. The second decoder is not part of the model.
    """

    def __init__(
        self,
        net: SegmentationNet,
        loss: SegmentationLoss,
        config: FinetuneConfig,
        average: SegmentationNet | None = None,
    ) -> None:
        super().__init__(net, loss, config, average)
        assert isinstance(config.semi_supervised, CrossConsistencyConfig)
        self.settings = config.semi_supervised
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "second decoder"))
            self.second = BilinearDecoder(net.trunk.maps, net.classifier.out_channels)

    @property
    def extra(self) -> nn.ModuleDict:
        """See :class:`Objective`."""
        return nn.ModuleDict({"second": self.second})

    def forward(self, step: int, images: Tensor, targets: Tensor, slots: Slots | None = None) -> StepLoss:
        """Supervised losses of both decoders plus the weighted cross-consistency."""
        first = self.perturbed(images, step, slots)
        second = self.perturbed(images, step, slots, "second jitter")
        with autocast(images.device, self.config.runtime):
            logits = self.net(first)
            others = self.second(self.net.trunk.encode(second))
        group = self.process_group
        own, other = self.loss(logits, targets, group), self.loss(others, targets, group)
        agreement = cross_consistency(
            self.loss.select(logits), self.loss.select(others), self.settings.threshold, group
        )
        weight = consistency_weight(self.settings, step, self.config.schedule.steps)
        return StepLoss(
            own.total + other.total + weight * agreement.loss,
            {
                "ce": own.cross_entropy,
                "dice_loss": own.dice,
                "second/loss": other.total,
                "consistency/loss": agreement.loss,
                "consistency/weight": torch.tensor(weight),
                "consistency/confident": agreement.confident,
            },
        )


class Agreement(NamedTuple):
    """Scalars of a cross-consistency."""

    loss: Tensor
    confident: Tensor
    """Share of this rank's pixels that have a pseudo label, mean of both directions."""


def cross_consistency(
    first: Tensor, second: Tensor, threshold: float, process_group: dist.ProcessGroup | None = None
) -> Agreement:
    """``CE(first, y(second)) + CE(second, y(first))`` with y the confident predictions, which have no gradient.

    Each cross entropy is summed over the pixels that have a label and divided by the number of ALL pixels (FixMatch,
    equation 4), so that few confident pixels weigh little.

    Args:
        first: Logits (B, K, h, w) of one decoder.
        second: Logits of the other one for the same pixels.
        threshold: Minimum probability of the most probable class for a label.
        process_group: The ranks, which have equally many pixels; None for one process.
    """
    labels = pseudo_labels(first, threshold), pseudo_labels(second, threshold)
    pixels = labels[0].numel()
    total = sum(
        F.cross_entropy(logits, taught, ignore_index=IGNORE_INDEX, reduction="sum")
        for logits, taught in ((first, labels[1]), (second, labels[0]))
    )
    ranks = 1 if process_group is None else dist.get_world_size(process_group)
    confident = sum((label != IGNORE_INDEX).sum() for label in labels)
    loss = whole_loss(torch.as_tensor(total) / (pixels * ranks), process_group)
    return Agreement(loss, torch.as_tensor(confident) / (2 * pixels))


@torch.no_grad()
def pseudo_labels(logits: Tensor, threshold: float) -> Tensor:
    """Most probable class of each pixel, int64 (B, h, w); 255 where its probability is below ``threshold``."""
    probability, label = logits.softmax(dim=1).max(dim=1)
    return torch.where(probability >= threshold, label, IGNORE_INDEX)


def consistency_weight(settings: CrossConsistencyConfig, step: int, steps: int) -> float:
    """Weight at a step (from 0): ``weight * exp(-5 (1 - t)^2)``, t from 0 to 1 over the ramp (Laine and Aila 2017)."""
    length = settings.ramp * steps
    t = min(1.0, step / length) if length else 1.0
    return settings.weight * math.exp(-5.0 * (1.0 - t) ** 2)

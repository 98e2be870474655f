"""Self-training: the moving average of the network labels unlabelled windows for the network.

A mean teacher (Tarvainen and Valpola 2017) gives hard labels to windows without intensity changes; the network learns
them from strongly changed windows (FixMatch, Sohn et al. 2020). Confidence is compared within each predicted class, so
that rare classes, which are never confident, have labels, too (as in FlexMatch, Zhang et al. 2021).

Shape legend: B windows, K classes that are not ignored, h w pixels.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from pscl_hpc.archive import IGNORE_INDEX
from pscl_hpc.config import Fraction
from pscl_hpc.models import SegmentationNet
from pscl_hpc.seeding import Slots
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.losses import Objective, SegmentationLoss
from pscl_hpc.segmentation.semi_supervised.base import SEMI_SUPERVISED, SemiSupervisedConfig
from pscl_hpc.training import StepLoss, autocast
from pscl_hpc.training.reduce import sum_over_ranks

_LEVELS = 1024
"""Bins of the histogram of confidence."""


class SelfTrainingConfig(SemiSupervisedConfig):
    """Self-training with the moving average of the weights as teacher."""

    name: Literal["self-training"] = "self-training"
    display_name: ClassVar[str] = "Self-training"
    needs_average: ClassVar[bool] = True
    start: Fraction = 0.4
    """Share of the steps that train on the annotated images alone."""
    ramp: Fraction = 0.15
    """Share of the steps over which the weight rises linearly after that."""
    kept: Fraction = 0.5
    """Share of each predicted class's pixels, in the unlabelled windows of a step, that have a label: the most
    confident ones."""
    certain: Fraction = 0.9
    """Pixels whose most probable class has this probability have a label in any case."""

    def weight_at(self, step: int, steps: int) -> float:
        """Weight of the loss on unlabelled pixels at a step, counted from 0; 0 before the start."""
        begin = self.start * steps
        if step < begin:
            return 0.0
        return self.weight * min(1.0, (step - begin + 1) / max(1.0, self.ramp * steps))


@SEMI_SUPERVISED.register(SelfTrainingConfig)
class SelfTraining(Objective):
    """Supervised loss of the annotated windows plus the loss of the unlabelled windows against the teacher's labels.

    On unlabelled windows the cross entropy has no class weights and is summed over the labelled pixels and divided by
    the number of ALL pixels (FixMatch, equation 4), so that few confident pixels weigh little.
    """

    def __init__(
        self,
        net: SegmentationNet,
        loss: SegmentationLoss,
        config: FinetuneConfig,
        average: SegmentationNet | None = None,
    ) -> None:
        super().__init__(net, loss, config, average)
        assert isinstance(config.semi_supervised, SelfTrainingConfig)
        self.settings = config.semi_supervised
        self.unweighted = SegmentationLoss(loss.classes, (1.0,) * loss.classes.count)

    def forward(self, step: int, images: Tensor, targets: Tensor, slots: Slots | None = None) -> StepLoss:
        """See :class:`Objective`."""
        places = range(len(images)) if slots is None else slots.places
        annotated = sum(place < self.config.batch_size for place in places)
        weight = self.settings.weight_at(step, self.config.schedule.steps)
        changed = self.perturbed(images, step, slots)
        with autocast(images.device, self.config.runtime):
            logits = self.net(changed if weight else changed[:annotated])
        own = self.loss(logits[:annotated], targets[:annotated], self.process_group)
        terms = {"ce": own.cross_entropy, "dice_loss": own.dice, "self/weight": torch.tensor(weight)}
        if not weight:
            return StepLoss(own.total, terms)
        labels = self._labels(images[annotated:])
        other = self.unweighted(logits[annotated:], labels, self.process_group)
        pixels = torch.tensor(labels.numel(), device=labels.device)
        share = sum_over_ranks((labels != IGNORE_INDEX).sum(), self.process_group) / sum_over_ranks(
            pixels, self.process_group
        )
        # The cross entropy is a mean over the labelled pixels.
        cross_entropy = other.cross_entropy * share
        mixed = self.config.loss.ce_weight * cross_entropy + self.config.loss.dice_weight * other.dice
        terms |= {"self/ce": cross_entropy, "self/dice_loss": other.dice, "self/labelled": share}
        return StepLoss(own.total + weight * mixed, terms)

    @torch.no_grad()
    def _labels(self, images: Tensor) -> Tensor:
        assert self.average is not None, "the configuration requires the average of the weights"
        with autocast(images.device, self.config.runtime):
            logits = self.average.eval()(images)
        probability = self.loss.select(logits).softmax(dim=1)
        return pseudo_labels(probability, self.loss.kept, self.settings, self.process_group)


def pseudo_labels(
    probability: Tensor,
    classes: Tensor,
    settings: SelfTrainingConfig,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The most probable class of each pixel where it is confident enough: uint8 (B, h, w), 255 elsewhere.

    The confidence above which a share of ``kept`` of a class's pixels lies is found in a histogram over the windows of
    all ranks, so that any number of ranks gives the same labels.

    Args:
        probability: (B, K, h, w) of this rank's windows.
        classes: Class index of each channel, (K,).
        settings: ``kept`` and ``certain``.
        process_group: The ranks; None for one process.
    """
    channels = probability.shape[1]
    confidence, channel = probability.max(dim=1)
    level = (confidence * _LEVELS).long().clamp(0, _LEVELS - 1)
    found = torch.bincount((channel * _LEVELS + level).flatten(), minlength=channels * _LEVELS)
    counts = sum_over_ranks(found, process_group).view(channels, _LEVELS)
    above = counts.flip(1).cumsum(1).flip(1)
    # Pixels at a level are taken while those above it are fewer than the share.
    wanted = settings.kept * counts.sum(dim=1, keepdim=True)
    taken = (above - counts) < wanted
    confident = taken[channel, level] | (confidence >= settings.certain)
    return torch.where(confident, classes[channel], IGNORE_INDEX).to(torch.uint8)

"""Objectives of fine-tuning, and their loss: cross entropy plus Dice with unannotated pixels (docs/protocol.md).

Shape legend: B windows, C channels, h w pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.archive import IGNORE_INDEX
from pscl_hpc.models import SegmentationNet
from pscl_hpc.seeding import Slots, torch_generator
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.training import StepLoss, autocast
from pscl_hpc.training.reduce import mean_over_ranks, sum_over_ranks, whole_loss
from pscl_hpc.views import jitter

LARGEST_BALANCED = 10.0
"""Upper bound of a balanced class weight."""
_SMOOTH = 1e-4
"""Added to numerator and denominator of the Dice ratio, so that a class that is neither present nor predicted has a
ratio of 1."""


class LossTerms(NamedTuple):
    """Scalars: the weighted sum, and its two parts before weighting."""

    total: Tensor
    cross_entropy: Tensor
    dice: Tensor


class SegmentationLoss(nn.Module):
    """``ce_weight * CE + dice_weight * Dice`` over the classes that are not ignored.

    CE is the class-weighted cross entropy summed over the annotated pixels and divided by their NUMBER, as in the
    released code, not by the sum of their weights: the loss of a window then does not depend on the other windows, and
    a window without a rare class weighs less.

    Dice is 1 - soft Dice of each foreground class, pooled over the pixels of the batch and averaged over the classes
    present in its annotation. An absent class has no Dice term; the cross entropy already penalises predicting it.

    The softmax excludes ignored classes. Without any annotated pixel both terms are 0. The batch is that of all ranks:
    every rank has its loss, and a backward pass gives this rank's share of the gradient.
    """

    def __init__(
        self,
        classes: ClassList,
        class_weights: Sequence[float],
        *,
        ce_weight: float = 0.5,
        dice_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if len(class_weights) != classes.count:
            raise ValueError(f"{classes.count} classes need as many weights, got {len(class_weights)}")
        self.classes = classes
        self.ce_weight = ce_weight
        self.dice_weight = dice_weight
        kept = list(classes.kept)
        table = torch.full((256,), IGNORE_INDEX, dtype=torch.long)
        table[kept] = torch.arange(len(kept))
        self.table: Tensor
        self.kept: Tensor
        self.foreground: Tensor
        self.weights: Tensor
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        self.register_buffer("foreground", table[list(classes.foreground)], persistent=False)
        weights = torch.tensor([float(class_weights[index]) for index in kept])
        self.register_buffer("weights", weights, persistent=False)

    def forward(
        self, logits: Tensor, targets: Tensor, process_group: dist.ProcessGroup | None = None
    ) -> LossTerms:
        """Loss of the batch of all ranks.

        Args:
            logits: (B, classes, h, w) of this rank.
            targets: (B, h, w) class indices of this rank, 255 where not annotated.
            process_group: The ranks; None for one process.
        """
        logits = self.select(logits)
        places = self.table[targets.long()]
        valid = places != IGNORE_INDEX
        weights = self.weights.to(logits)
        summed = F.cross_entropy(logits, places, weights, ignore_index=IGNORE_INDEX, reduction="sum")
        cross_entropy = mean_over_ranks(summed, valid.sum(), process_group)

        one_hot = F.one_hot(places.where(valid, 0), len(self.kept)).permute(0, 3, 1, 2).to(logits)
        one_hot = (one_hot * valid.unsqueeze(1)).index_select(1, self.foreground)
        probability = (logits.softmax(dim=1) * valid.unsqueeze(1)).index_select(1, self.foreground)
        pixels = (0, 2, 3)
        overlap = whole_loss((probability * one_hot).sum(dim=pixels), process_group)
        predicted = whole_loss(probability.sum(dim=pixels), process_group)
        present = sum_over_ranks(one_hot.sum(dim=pixels), process_group)
        # The order of operations is that of MONAI's DiceLoss, also in the backward pass.
        false_positive, false_negative = predicted - overlap, present - overlap
        false_positive, false_negative = false_positive * 0.5, false_negative * 0.5
        numerator = 2 * overlap + _SMOOTH
        each = 1 - numerator / (2 * (overlap + false_positive + false_negative) + _SMOOTH)
        occurs = (present > 0).to(each)
        dice = (each * occurs).sum() / occurs.sum().clamp_min(1)
        return LossTerms(self.ce_weight * cross_entropy + self.dice_weight * dice, cross_entropy, dice)

    def select(self, logits: Tensor) -> Tensor:
        """The logits of the classes that are not ignored, in single precision or wider."""
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return logits.index_select(1, self.kept)


def class_weights(
    rule: Literal["uniform", "balanced"] | tuple[float, ...], pixels: npt.NDArray[np.int64]
) -> tuple[float, ...]:
    """Weights of the cross entropy, one per class.

    Args:
        rule: ``uniform``: all 1. ``balanced``: share of the pixels to the power -1/2, at most 10, so that a class
            weighs as the root of its share instead of the share. Or the weights themselves.
        pixels: Annotated pixels of each class in the reference images, ignored classes 0.
    """
    if rule == "uniform":
        return (1.0,) * len(pixels)
    if rule == "balanced":
        share = pixels / max(1, int(pixels.sum()))
        return tuple(float(min(LARGEST_BALANCED, value**-0.5)) if value > 0 else 1.0 for value in share)
    if len(rule) != len(pixels):
        raise ValueError(f"{len(pixels)} classes need as many weights, got {len(rule)}")
    return tuple(rule)


class Objective(nn.Module, ABC):
    """Loss of the windows of a step.

    With several ranks it is the loss of the windows of all ranks, equal on each, and its backward pass gives this
    rank's share of the gradient. Modules added to the network are trained at the decoder's rate and stored in
    checkpoints, but not in the model.

    Args:
        net: The network that is trained, validated and written.
        loss: Loss on annotated pixels.
        config: The run.
        average: The moving average of the network's weights, where the run has one.
    """

    process_group: dist.ProcessGroup | None = None
    """The ranks that train together; None for one process."""

    def __init__(
        self,
        net: SegmentationNet,
        loss: SegmentationLoss,
        config: FinetuneConfig,
        average: SegmentationNet | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.config = config
        # In a tuple, so that it is not a part of the module that is trained.
        self._average = (average,)

    @property
    def average(self) -> SegmentationNet | None:
        """The moving average of the network's weights."""
        return self._average[0]

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
        images = self.perturbed(images, step, slots)
        with autocast(images.device, self.config.runtime):
            logits = self.net(images)
        terms = self.loss(logits, targets, self.process_group)
        return StepLoss(terms.total, {"ce": terms.cross_entropy, "dice_loss": terms.dice})

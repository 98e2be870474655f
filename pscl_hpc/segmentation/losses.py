"""Cross entropy plus Dice with ignored classes and unannotated pixels (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from monai.losses.dice import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.archive import IGNORE_INDEX
from pscl_hpc.segmentation.classes import ClassList

LARGEST_BALANCED = 10.0
"""Upper bound of a balanced class weight."""
_SMOOTH = 1e-4
"""Added to both sides of the Dice ratio, so that a class absent in both is perfect and not rewarded beyond."""


class LossTerms(NamedTuple):
    """Scalars: the weighted sum, and its two parts before weighting."""

    total: Tensor
    cross_entropy: Tensor
    dice: Tensor


class SegmentationLoss(nn.Module):
    """``ce_weight * CE + dice_weight * Dice`` over the classes that are not ignored.

    CE is the class-weighted cross entropy summed over the annotated pixels and divided by their NUMBER, as the
    released code does, not by the sum of their weights: a window's loss then does not depend on what else is in the
    batch, and a window without a rare class weighs less.

    Dice is 1 - soft Dice of each foreground class, pooled over the pixels of the batch, averaged over the classes
    that the batch's annotation shows. An absent class has no Dice term; the cross entropy already punishes seeing it.

    The logits of ignored classes are left out of the softmax. Without any annotated pixel both terms are 0.
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
        self.dice = DiceLoss(batch=True, reduction="none", smooth_nr=_SMOOTH, smooth_dr=_SMOOTH)

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """Logits (B, classes, h, w) and targets (B, h, w) of class indices, 255 where not annotated."""
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        logits = logits.index_select(1, self.kept)
        places = self.table[targets.long()]
        valid = places != IGNORE_INDEX
        weights = self.weights.to(logits)
        summed = F.cross_entropy(logits, places, weights, ignore_index=IGNORE_INDEX, reduction="sum")
        cross_entropy = summed / valid.sum().clamp_min(1)

        one_hot = F.one_hot(places.where(valid, 0), len(self.kept)).permute(0, 3, 1, 2).to(logits)
        one_hot = (one_hot * valid.unsqueeze(1)).index_select(1, self.foreground)
        probability = (logits.softmax(dim=1) * valid.unsqueeze(1)).index_select(1, self.foreground)
        each = self.dice(probability, one_hot).flatten()
        occurs = (one_hot.sum(dim=(0, 2, 3)) > 0).to(each)
        dice = (each * occurs).sum() / occurs.sum().clamp_min(1)
        return LossTerms(self.ce_weight * cross_entropy + self.dice_weight * dice, cross_entropy, dice)


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

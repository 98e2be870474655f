"""Scores of a segmentation, pooled over the pixels of all images (docs/protocol.md).

Everything is computed from one confusion matrix of integers, so any number of images of any size can be scored
without keeping them. Library metrics average over images, which gives other numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.segmentation.classes import ClassList


@dataclass(frozen=True)
class Scores:
    """Scores of a set of images. A class that is neither in the masks nor predicted has None and is left out of
    the means; a mean over no class is None."""

    mean_dice: float | None
    """Mean of ``dice``."""
    dice: dict[str, float | None]
    """2 |P and G| / (|P| + |G|) of each foreground class, over all pixels of all images."""
    mean_iou: float | None
    """Mean of ``iou``."""
    iou: dict[str, float | None]
    """|P and G| / |P or G| of each foreground class."""
    pixel_accuracy: float | None
    """Share of right pixels among those annotated and not of an ignored class, background included."""
    images: int

    def to_json(self) -> dict[str, Any]:
        """Plain values in the order in which they are written."""
        return {
            "mean_dice": self.mean_dice,
            "dice": self.dice,
            "mean_iou": self.mean_iou,
            "iou": self.iou,
            "pixel_accuracy": self.pixel_accuracy,
            "images": self.images,
        }


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels that are annotated and not of an ignored class."""

    def __init__(self, classes: ClassList) -> None:
        self.classes = classes
        self.counts: npt.NDArray[np.int64] = np.zeros((classes.count, classes.count), np.int64)
        self.images = 0

    def update(self, prediction: npt.NDArray[np.integer[Any]], mask: npt.NDArray[np.uint8]) -> None:
        """Add one image.

        Args:
            prediction: (h, w) class indices.
            mask: (h, w) class indices, 255 where nobody annotated.
        """
        if prediction.shape != mask.shape:
            raise ValueError(f"prediction {prediction.shape} and mask {mask.shape} differ in shape")
        count = self.classes.count
        truth = self.classes.without_ignored(mask)
        valid = truth < count
        pairs = truth[valid].astype(np.int64) * count + prediction[valid]
        self.counts += np.bincount(pairs, minlength=count * count).reshape(count, count)
        self.images += 1

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the images of another matrix over the same classes."""
        if other.classes != self.classes:
            raise ValueError("confusion matrices of different class lists cannot be added")
        self.counts += other.counts
        self.images += other.images

    def scores(self) -> Scores:
        """Scores of all images added so far."""
        hits = np.diagonal(self.counts)
        size = self.counts.sum(axis=0) + self.counts.sum(axis=1)
        dice: dict[str, float | None] = {}
        iou: dict[str, float | None] = {}
        for index in self.classes.foreground:
            name, both, either = self.classes.names[index], int(hits[index]), int(size[index])
            dice[name] = 2 * both / either if either else None
            iou[name] = both / (either - both) if either else None
        total = int(self.counts.sum())
        accuracy = int(hits.sum()) / total if total else None
        return Scores(_mean(dice), dice, _mean(iou), iou, accuracy, self.images)


def _mean(values: dict[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None

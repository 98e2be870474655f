"""Scores of a segmentation, pooled over the pixels of all images (docs/protocol.md).

All scores come from one confusion matrix of integers, so images need not be kept. Metric libraries average over images
instead, which gives other numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.segmentation.classes import ClassList


@dataclass(frozen=True)
class Scores:
    """Scores of a set of images.

    A class that is neither annotated nor predicted has the score None and is left out of the means. A mean over no
    class is None.
    """

    mean_dice: float | None
    """Mean of ``dice``."""
    dice: dict[str, float | None]
    """2 |P and G| / (|P| + |G|) of each foreground class, over all pixels of all images."""
    mean_iou: float | None
    """Mean of ``iou``."""
    iou: dict[str, float | None]
    """|P and G| / |P or G| of each foreground class."""
    pixel_accuracy: float | None
    """Share of correct pixels among those annotated with a class that is not ignored, including the background."""
    images: int

    def to_json(self) -> dict[str, Any]:
        """The scores as plain values, in the order above."""
        return asdict(self)


class ConfusionMatrix:
    """Pixel counts (true class, predicted class) over all pixels annotated with a class that is not ignored."""

    def __init__(self, classes: ClassList) -> None:
        self.classes = classes
        self.counts: npt.NDArray[np.int64] = np.zeros((classes.count, classes.count), np.int64)
        self.images = 0

    def update(self, prediction: npt.NDArray[np.integer[Any]], mask: npt.NDArray[np.uint8]) -> None:
        """Add one image.

        Args:
            prediction: (h, w) class indices.
            mask: (h, w) class indices, 255 where not annotated.

        Raises:
            ValueError: the shapes differ.
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
        """Add the counts of another matrix; ValueError when its classes differ."""
        if other.classes != self.classes:
            raise ValueError("cannot merge confusion matrices with different class lists")
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

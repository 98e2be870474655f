"""Segmentation of images by a pixel classifier."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pscl_hpc.archive import Archive
from pscl_hpc.classifiers import FeatureCache, FeatureReader, PixelClassifier, PixelMaps
from pscl_hpc.classifiers.features.base import Picture
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.config import InferenceConfig

_ROWS = 64
"""Rows that are classified at once."""


class ClassifierPredictor:
    """Predicts class indices with a pixel classifier, in parts of bounded size.

    Args:
        classifier: The classifier.
        cache: Where feature maps are kept; None: nowhere.
        home: Fingerprint of the only archive whose maps are kept; those of files would never be read again.
        inference: Test-time augmentation: none or rotations.
    """

    def __init__(
        self,
        classifier: PixelClassifier,
        *,
        cache: FeatureCache | None = None,
        home: str = "",
        inference: InferenceConfig | None = None,
    ) -> None:
        self.classifier = classifier
        card = classifier.card
        self.classes = ClassList(card.classes, card.background, card.ignore_classes)
        self.inference = inference or InferenceConfig()
        self._turns = self.inference.tta != "none"
        self._home = home
        self._plain = FeatureReader(classifier.features, resize=card.resize)
        self._cached = FeatureReader(classifier.features, cache, resize=card.resize) if cache else self._plain
        self._shown = torch.tensor(card.shown, dtype=torch.uint8)

    def archive_image(
        self, archive: Archive, index: int, *, confidence: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Class indices (h, w) of an archive image; only classes that the annotated images show are predicted.

        ``confidence`` (h, w) is filled with the probability of the predicted class, 0 to 255.
        """
        record = archive.records[index]
        reader = self._cached if archive.fingerprint == self._home else self._plain
        labels = np.empty((record.height, record.width), np.uint8)
        for part in reader.parts(archive, index):
            (y0, x0, height, width), (top, left) = part.window, part.corner
            total = self._probabilities(part.maps, *part.outer[2:])
            if self._turns:
                total = total + self._turned(reader, reader.picture(archive, index, part.outer))
            highest, best = total[:, top : top + height, left : left + width].max(dim=0)
            labels[y0 : y0 + height, x0 : x0 + width] = self._shown[best].numpy()
            if confidence is not None:
                share = highest / (8 if self._turns else 1)
                confidence[y0 : y0 + height, x0 : x0 + width] = (share * 255).round().to(torch.uint8).numpy()
        return labels

    def _turned(self, reader: FeatureReader, picture: Picture) -> Tensor:
        """The sum of the class probabilities of the seven other rotations and reflections (K, h, w), turned back."""
        total = torch.zeros(())
        for turns, mirrored in product(range(4), (False, True)):
            if not turns and not mirrored:
                continue
            changed = Picture(*(_turn(part, turns, mirrored=mirrored) for part in picture))
            maps = reader.maps_of(changed)
            back = torch.rot90(self._probabilities(maps, *changed.grey.shape[1:]), -turns, (1, 2))
            total = total + (back.flip(2) if mirrored else back)
        return total

    def _probabilities(self, maps: PixelMaps, height: int, width: int) -> Tensor:
        """Class probabilities (K, height, width)."""
        found = []
        for top in range(0, height, _ROWS):
            rows = torch.arange(top, min(height, top + _ROWS)).repeat_interleave(width)
            columns = torch.arange(width).repeat(len(rows) // width)
            found.append(self.classifier.probabilities(maps.at(rows, columns)))
        return torch.cat(found).T.reshape(-1, height, width)


def _turn(image: Tensor, turns: int, *, mirrored: bool) -> Tensor:
    """A reflected and then rotated copy of an image (C, h, w)."""
    return torch.rot90(image.flip(2) if mirrored else image, turns, (1, 2)).contiguous()

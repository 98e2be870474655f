"""Phase fractions corrected by the confusion of the model on validation images.

Let R[i, j] be the share of the validation pixels predicted as class j that are annotated as class i. A predicted fraction
p[j] becomes sum_j R[i, j] p[j]: each predicted class is shared out among the true classes as in the validation images
(the post-stratified estimator of areas from maps; Olofsson et al., Remote Sensing of Environment 148, 2014, equation 10).

Limits: it is right on average for images like the validation images, with similar fractions and errors. It moves images
with other fractions towards those of the validation images, and it does not help on images of another kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pscl_hpc.metallography.statistics import Estimate, around, jackknife_error, mean_interval, t_factor

LIMITS = (
    "The correction shares out the pixels of each predicted class among the classes as in the validation images. It is "
    "right on average for images like these, and does not help on images of another kind."
)


@dataclass(frozen=True)
class Correction:
    """The confusion of a model on validation images."""

    counts: tuple[npt.NDArray[np.int64], ...]
    """(true class, predicted class) pixels of each validation image."""
    split: str
    """Where the images are from."""

    def matrix(self, without: int | None = None) -> npt.NDArray[np.float64]:
        """(true class, predicted class): the shares R, columns of which sum to 1.

        A class that was never predicted in the validation images is not corrected.

        Args:
            without: Place of an image that is left out.
        """
        kept = [counts for place, counts in enumerate(self.counts) if place != without]
        pooled = np.sum(kept, axis=0).astype(np.float64)
        predicted = pooled.sum(axis=0)
        found: npt.NDArray[np.float64] = np.where(
            predicted > 0, pooled / np.maximum(predicted, 1), np.eye(len(pooled))
        )
        return found

    def apply(self, fractions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Corrected fractions (classes,) of one image."""
        corrected: npt.NDArray[np.float64] = self.matrix() @ fractions
        return corrected

    def estimate(self, images: Sequence[npt.NDArray[np.float64]], index: int) -> Estimate:
        """The corrected mean fraction of a class over images.

        Its interval contains the variation from image to image, and that of R over the validation images (jackknife); the
        half widths are added in quadrature. With a single validation image the second part is not known and left out.

        Args:
            images: (classes,) fractions of each image.
            index: The class.
        """
        if not images:
            return Estimate(None)
        plain = mean_interval([float(self.apply(fractions)[index]) for fractions in images], limits=(0, 1))
        count = len(self.counts)
        if plain.low is None or plain.value is None or count < 2:
            return plain
        mean = np.mean(images, axis=0)
        without = [float((self.matrix(place) @ mean)[index]) for place in range(count)]
        spread = [float(self.apply(fractions)[index]) for fractions in images]
        first = t_factor(len(images)) * float(np.std(spread, ddof=1)) / math.sqrt(len(images))
        second = t_factor(count) * jackknife_error(without)
        return around(plain.value, math.hypot(first, second), len(images), (0, 1))

"""Multi-scale filters of a grey image, as in pixel classifiers (Arganda-Carreras et al. 2017, Trainable Weka)."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from scipy import ndimage

_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the Gaussians in pixels."""
_MEDIANS = (3, 5, 9)
"""Sides of the medians in pixels."""
_TRUNCATE = 3.0


def filter_responses(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Responses of 34 filters.

    At 1, 2, 4, 8 and 16 pixels: Gaussian, standard deviation around it, gradient magnitude, both eigenvalues of the
    Hessian, and the difference of Gaussians to the next scale; then medians and the image itself.

    Args:
        image: (h, w), standardised.

    Returns:
        (34, h, w). Derivatives are multiplied by a power of their scale, so that all scales have similar values.
    """
    smooth = [_gaussian(image, scale) for scale in _SCALES]
    found = [image]
    for scale, mean in zip(_SCALES, smooth, strict=True):
        spread = np.sqrt(np.maximum(_gaussian(image * image, scale) - mean * mean, 0))
        rows, columns = (_gaussian(image, scale, order) * scale for order in ((1, 0), (0, 1)))
        down, across, mixed = (
            _gaussian(image, scale, order) * scale**2 for order in ((2, 0), (0, 2), (1, 1))
        )
        middle, half = (down + across) / 2, np.hypot((down - across) / 2, mixed)
        found += [mean, spread, np.hypot(rows, columns), middle + half, middle - half]
    found += [fine - coarse for fine, coarse in itertools.pairwise(smooth)]
    found += [image - smooth[0]]
    found += [ndimage.median_filter(image, side, mode="reflect") for side in _MEDIANS]
    return np.stack(found).astype(np.float32)


def _gaussian(
    image: npt.NDArray[np.float32], scale: float, order: tuple[int, int] = (0, 0)
) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = ndimage.gaussian_filter(
        image, scale, order=order, mode="reflect", truncate=_TRUNCATE
    )
    return found

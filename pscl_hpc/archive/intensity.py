"""The intensity range of an image: which stored values are black and white."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE_PIXELS = 1 << 24
"""The percentiles of a float image above this size are taken from a regular grid of its pixels."""


class RangeEstimator:
    """Intensity range of one image, computed strip by strip.

    0..255 for uint8; exact percentiles for uint16; for float32 percentiles of the finite values, of all pixels up to
    :data:`SAMPLE_PIXELS` and of a regular grid above.
    """

    def __init__(self, dtype: str, height: int, width: int, percentiles: tuple[float, float]) -> None:
        self._dtype = dtype
        self._percentiles = percentiles
        self._histogram = np.zeros(1 << 16, np.int64)
        self._samples: list[npt.NDArray[np.float32]] = []
        self._step = max(1, int(np.ceil(np.sqrt(height * width / SAMPLE_PIXELS))))
        self._row = 0

    def add(self, strip: npt.NDArray[Any]) -> None:
        """Add the next rows, (rows, width, channels)."""
        if self._dtype == "uint16":
            self._histogram += np.bincount(strip.reshape(-1), minlength=1 << 16)
        elif self._dtype == "float32":
            values = strip[-self._row % self._step :: self._step, :: self._step].astype(np.float32)
            self._samples.append(values[np.isfinite(values)])
        self._row += strip.shape[0]

    def range(self) -> tuple[float, float]:
        """(low, high); equal only for a constant image."""
        if self._dtype == "uint8":
            return 0.0, 255.0
        if self._dtype == "uint16":
            return _histogram_percentiles(self._histogram, self._percentiles)
        values = np.concatenate(self._samples) if self._samples else np.empty(0, np.float32)
        if not values.size:
            return 0.0, 0.0
        low, high = np.percentile(values, self._percentiles)
        return float(low), float(high)


def _histogram_percentiles(
    histogram: npt.NDArray[np.int64], percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Percentiles by linear interpolation between order statistics, as numpy.percentile."""
    cumulative = np.cumsum(histogram)
    places = np.array(percentiles) / 100 * (cumulative[-1] - 1)
    lower, upper = (np.searchsorted(cumulative, end(places), side="right") for end in (np.floor, np.ceil))
    low, high = lower + (upper - lower) * (places % 1)
    return float(low), float(high)

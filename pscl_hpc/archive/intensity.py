"""The intensity range of an image: which stored values are black and white."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE_PIXELS = 1 << 24
"""The percentiles of a float image above this size are taken from a regular grid of its pixels."""
_HUGE = 1e30
"""Larger float values are a fill for missing pixels, such as -3.4e38."""
_FILLS = (-9999.0, -99999.0, -32768.0, -32767.0)
"""Usual fills that could be real values; they are taken for a fill if all other values are close together far above."""


class RangeEstimator:
    """Intensity range of one image, computed strip by strip.

    0..255 for uint8; exact percentiles for uint16; for float32 percentiles of the finite values, of all pixels up to
    :data:`SAMPLE_PIXELS` and of a regular grid above. Values that fill missing pixels are left out. If the percentiles
    are equal but the image is not constant, the range is that from the smallest to the largest value.
    """

    remark: str
    """Why the range is not that of the percentiles, or that the image is constant; else empty. Set by :meth:`range`."""

    def __init__(self, dtype: str, height: int, width: int, percentiles: tuple[float, float]) -> None:
        self._dtype = dtype
        self._percentiles = percentiles
        self._histogram = np.zeros(1 << 16 if dtype == "uint16" else 0, np.int64)
        self._samples: list[npt.NDArray[np.float32]] = []
        self._step = max(1, int(np.ceil(np.sqrt(height * width / SAMPLE_PIXELS))))
        self._row = 0
        self._least, self._most = np.inf, -np.inf
        self.remark = ""

    def add(self, strip: npt.NDArray[Any]) -> None:
        """Add the next rows, (rows, width, channels)."""
        if self._dtype == "uint8":
            self._least, self._most = min(self._least, int(strip.min())), max(self._most, int(strip.max()))
        elif self._dtype == "uint16":
            self._histogram += np.bincount(strip.reshape(-1), minlength=1 << 16)
        elif self._dtype == "float32":
            values = strip[-self._row % self._step :: self._step, :: self._step].astype(np.float32)
            self._samples.append(values[np.isfinite(values)])
            real = strip[np.abs(strip) < _HUGE]
            if real.size:
                self._least = min(self._least, float(real.min()))
                self._most = max(self._most, float(real.max()))
        self._row += strip.shape[0]

    def range(self) -> tuple[float, float]:
        """(low, high); equal only for a constant image."""
        if self._dtype == "uint8":
            self._note_constant(self._least, self._most)
            return 0.0, 255.0
        if self._dtype == "uint16":
            low, high = _histogram_percentiles(self._histogram, self._percentiles)
            present = np.flatnonzero(self._histogram)
            least, most = float(present[0]), float(present[-1])
        else:
            values = np.concatenate(self._samples) if self._samples else np.empty(0, np.float32)
            if not values.size:
                self.remark = "no pixel has a finite value, so the image is empty"
                return 0.0, 0.0
            values, least = self._without_fill(values)
            low, high = (float(value) for value in np.percentile(values, self._percentiles))
            most = self._most if np.isfinite(self._most) else high
        if low == high and least < most:
            self.remark = (
                f"almost all pixels have the value {low:g}, so the full range {least:g} to {most:g} is used instead of the "
                "percentiles"
            )
            return least, most
        if not self.remark:
            self._note_constant(least, most)
        return low, high

    def _note_constant(self, least: float, most: float) -> None:
        if least == most:
            self.remark = f"all pixels have the value {least:g}, so the image is empty"

    def _without_fill(self, values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float]:
        """The values without those that fill missing pixels, and the least value of the image that is not a fill."""
        least = self._least if np.isfinite(self._least) else float(values.min())
        kept = values[np.abs(values) < _HUGE]
        if kept.size and float(kept.min()) in _FILLS:
            rest = kept[kept > kept.min()]
            if rest.size and rest.min() - kept.min() > np.ptp(rest):
                kept, least = rest, float(rest.min())
        if not kept.size:
            return values, least
        if kept.size < values.size:
            share = 100 * (1 - kept.size / values.size)
            fill = values.min() if values.min() < kept.min() else values.max()
            self.remark = (
                f"{share:.1f}% of the pixels have the value {fill:g} and are taken for missing; the intensity range leaves "
                "them out"
            )
        return kept, least


def _histogram_percentiles(
    histogram: npt.NDArray[np.int64], percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Percentiles by linear interpolation between order statistics, as numpy.percentile."""
    cumulative = np.cumsum(histogram)
    places = np.array(percentiles) / 100 * (cumulative[-1] - 1)
    lower, upper = (np.searchsorted(cumulative, end(places), side="right") for end in (np.floor, np.ceil))
    low, high = lower + (upper - lower) * (places % 1)
    return float(low), float(high)

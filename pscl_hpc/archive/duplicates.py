"""Finding copies of an image, including rotated (by quarter turns), mirrored, rescaled and brightness-changed ones.

Images are compared as 40 x 40 thumbnails of zero mean and unit norm. A pair is a copy when the best correlation over
the eight orientations reaches a threshold. Comparing all pairs that way is too slow, so pairs are first filtered by a
vector that does not depend on orientation: in the cosine transform of a square, a reflection flips signs and a
transposition swaps (u, v) with (v, u), so the norms over {(u, v), (v, u)} are invariant. As norms of orthogonal
projections they are never farther apart than the thumbnails themselves, so the filter misses no copy.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

SIDE = 40
"""Side of a thumbnail."""
THRESHOLD = 0.98
"""Smallest correlation of the thumbnails of copies."""
_BLOCK = 2048
_FLAT = 1e-3
"""Contrast, as a share of the mean, below which a thumbnail is not compared."""

Thumbnail = npt.NDArray[np.float32]

_TURNS = ("near copy", "rotated by 90 degrees", "rotated by 180 degrees", "rotated by 270 degrees")


@dataclass(frozen=True)
class Pair:
    """Two images that are copies, by index, ``first < second``."""

    first: int
    second: int
    correlation: float
    turn: str


class Thumbnailer:
    """Averages an image over a 40 x 40 grid, from strips of rows.

    A pixel on a grid line is divided by area, so the thumbnail of a rotated, mirrored or rescaled image shows the same.
    """

    def __init__(self, height: int, width: int) -> None:
        self._height = height
        self._across = _shares(0, width, width)
        self._mean = np.zeros((SIDE, SIDE), np.float64)
        self._row = 0

    def add(self, strip: npt.NDArray[Any]) -> None:
        """Add the next rows, (rows, width, channels)."""
        grey = np.nan_to_num(strip.astype(np.float64).mean(axis=2), nan=0.0, posinf=0.0, neginf=0.0)
        self._mean += _shares(self._row, len(grey), self._height) @ (grey @ self._across.T)
        self._row += len(grey)

    def thumbnail(self) -> Thumbnail:
        """(40, 40) zero-mean, unit-norm; all zero for an image without contrast."""
        centred = self._mean - self._mean.mean()
        norm = float(np.linalg.norm(centred))
        if norm <= _FLAT * SIDE * abs(float(self._mean.mean())):
            return np.zeros((SIDE, SIDE), np.float32)
        unit: Thumbnail = (centred / norm).astype(np.float32)
        return unit


def _shares(start: int, count: int, total: int) -> npt.NDArray[np.float64]:
    """(40, count): weight of each pixel from ``start`` in the mean of each of 40 equal intervals of ``total``
    pixels."""
    borders = np.arange(SIDE + 1) * (total / SIDE)
    pixels = np.arange(start, start + count)
    covered = np.minimum(borders[1:, None], pixels + 1) - np.maximum(borders[:-1, None], pixels)
    shares: npt.NDArray[np.float64] = np.maximum(covered, 0) * (SIDE / total)
    return shares


def similar_pairs(thumbnails: Thumbnail, threshold: float = THRESHOLD) -> list[Pair]:
    """All pairs of (n, 40, 40) thumbnails whose best correlation over the orientations reaches ``threshold``."""
    if len(thumbnails) < 2:
        return []
    invariants = _invariants(thumbnails)
    useful = np.flatnonzero(np.abs(thumbnails).max(axis=(1, 2)) > 0)
    # |a - b|^2 = 2 - 2 corr for unit vectors; the margin covers float32 rounding.
    largest = 2 - 2 * threshold + 1e-4
    pairs = []
    for top in range(0, len(useful), _BLOCK):
        rows = useful[top : top + _BLOCK]
        for left in range(top, len(useful), _BLOCK):
            columns = useful[left : left + _BLOCK]
            a, b = invariants[rows], invariants[columns]
            distance = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
            for i, j in np.argwhere(distance <= largest):
                if rows[i] < columns[j]:
                    pair = _compare(thumbnails, int(rows[i]), int(columns[j]))
                    if pair.correlation >= threshold:
                        pairs.append(pair)
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def _invariants(thumbnails: Thumbnail) -> Thumbnail:
    spectrum = dctn(thumbnails, axes=(1, 2), norm="ortho")
    upper = np.triu_indices(SIDE)
    power = spectrum**2 + np.where(np.eye(SIDE, dtype=bool), 0, np.swapaxes(spectrum, 1, 2) ** 2)
    norms: Thumbnail = np.sqrt(power[:, upper[0], upper[1]]).astype(np.float32)
    return norms


def _compare(thumbnails: Thumbnail, first: int, second: int) -> Pair:
    best, name = -1.0, ""
    for mirrored, turns in itertools.product((False, True), range(4)):
        other = thumbnails[second, :, ::-1] if mirrored else thumbnails[second]
        correlation = float((thumbnails[first] * np.rot90(other, turns)).sum())
        if correlation > best + 1e-6:
            best, name = correlation, _TURNS[turns]
            if mirrored:
                name = f"mirrored, {name}" if turns else "mirrored"
    return Pair(first, second, best, name)

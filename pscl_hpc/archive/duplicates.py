"""Finding copies of an image, including rotated (by quarter turns), mirrored, rescaled and brightness-changed ones.

Images are compared as 40 x 40 thumbnails of zero mean and unit norm. Two are copies when the best correlation over the
eight orientations reaches a threshold. Only candidates are compared, see ``signatures``. Images without features, such as
noise under uneven illumination, would all look alike; they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.signatures import ORIENTATIONS, candidates, signatures, turned

SIDE = 40
"""Side of a thumbnail."""
THRESHOLD = 0.98
"""Smallest correlation of the thumbnails of copies."""
_FLAT = 1e-3
"""Contrast, as a share of the mean, below which a thumbnail is not compared."""
_NOISE = 2.0
"""Variance of a thumbnail without its shading, over the variance that uncorrelated noise of its pixels would cause, below
which it shows nothing but noise."""
_TRIES = 64
"""Comparisons of an image that fail; after these it is not compared again."""
_PART = 4096

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
        self._squares = 0.0
        """Sum of the squares of row weights."""
        self._steps, self._step_count = 0.0, 0
        """Squared differences of pixels beside each other."""

    def add(self, strip: npt.NDArray[Any]) -> None:
        """Add the next rows, (rows, width, channels)."""
        grey = np.nan_to_num(strip.astype(np.float64).mean(axis=2), nan=0.0, posinf=0.0, neginf=0.0)
        shares = _shares(self._row, len(grey), self._height)
        self._mean += shares @ (grey @ self._across.T)
        self._row += len(grey)
        self._squares += float((shares**2).sum())
        step = np.diff(grey, axis=1).reshape(-1)
        self._steps += float(step @ step)
        self._step_count += step.size

    def thumbnail(self) -> Thumbnail:
        """(40, 40) zero-mean, unit-norm; all zero for an image without features."""
        return np.zeros((SIDE, SIDE), np.float32) if self._is_noise() else self.area_means()

    def area_means(self) -> Thumbnail:
        """As :meth:`thumbnail`, all zero only for an image without contrast."""
        centred = self._mean - self._mean.mean()
        norm = float(np.linalg.norm(centred))
        if norm <= _FLAT * SIDE * abs(float(self._mean.mean())):
            return np.zeros((SIDE, SIDE), np.float32)
        unit: Thumbnail = (centred / norm).astype(np.float32)
        return unit

    def _is_noise(self) -> bool:
        """Whether uncorrelated pixels, under smooth shading, would give such a thumbnail."""
        pixel = self._steps / (2 * max(1, self._step_count))
        expected = pixel * (self._squares / SIDE) * float((self._across**2).sum()) / SIDE
        flat = self._mean.reshape(-1)
        shading = _shading()
        rest = flat - shading @ (shading.T @ flat)
        return float(rest @ rest) / (SIDE * SIDE) <= _NOISE * expected


@lru_cache(1)
def _shading() -> npt.NDArray[np.float64]:
    """Orthonormal quadratic surfaces, (1600, 6)."""
    place = np.linspace(-1, 1, SIDE)
    y, x = (axis.reshape(-1) for axis in np.meshgrid(place, place, indexing="ij"))
    basis, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))
    return basis


@lru_cache(256)
def _shares(start: int, count: int, total: int) -> npt.NDArray[np.float64]:
    """(40, count): weight of each pixel from ``start`` in the mean of each of 40 equal intervals of ``total``
    pixels."""
    borders = np.arange(SIDE + 1) * (total / SIDE)
    pixels = np.arange(start, start + count)
    covered = np.minimum(borders[1:, None], pixels + 1) - np.maximum(borders[:-1, None], pixels)
    shares: npt.NDArray[np.float64] = np.maximum(covered, 0) * (SIDE / total)
    return shares


class Thumbnails:
    """Thumbnails of many images, 1,600 bytes each."""

    def __init__(self, count: int) -> None:
        self._packed = np.zeros((count, SIDE * SIDE), np.int8)

    def __len__(self) -> int:
        return len(self._packed)

    def __setitem__(self, index: int, thumbnail: Thumbnail) -> None:
        # Roots, because a few large values must not leave the others only a few levels.
        flat = thumbnail.reshape(-1)
        roots = np.sqrt(np.abs(flat) / max(1e-12, float(np.abs(flat).max())))
        self._packed[index] = np.rint(np.copysign(127 * roots, flat))

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> Thumbnail:
        """(n, 40, 40), zero-mean and of unit norm."""
        roots = self._packed[indices].astype(np.float32)
        values = roots * np.abs(roots)
        values -= values.mean(axis=1, keepdims=True)
        values /= np.maximum(1e-12, np.linalg.norm(values, axis=1, keepdims=True))
        return values.reshape(-1, SIDE, SIDE)

    def useful(self) -> npt.NDArray[np.int64]:
        """Indices of thumbnails that are not empty."""
        return np.flatnonzero(self._packed.any(axis=1))


def similar_pairs(thumbnails: Thumbnails, threshold: float = THRESHOLD) -> list[Pair]:
    """Pairs of copies, by index; copies of one picture are connected by these pairs, but not every two are a pair.

    Candidates come from random projections, so a copy can be missed: the less likely, the higher its correlation and the
    fewer the images.
    """
    useful = thumbnails.useful()
    count = len(useful)
    if count < 2:
        return []
    parts = [signatures(thumbnails[useful[start : start + _PART]]) for start in range(0, count, _PART)]
    found: list[Pair] = []
    tries = np.full(count, _TRIES)
    group = np.arange(count)
    for pairs in candidates(np.concatenate(parts, axis=1)):
        first, second = pairs[:, 0], pairs[:, 1]
        open_pairs = pairs[(group[first] != group[second]) & (np.minimum(tries[first], tries[second]) > 0)]
        new = []
        for start in range(0, len(open_pairs), _PART):
            part = open_pairs[start : start + _PART]
            best, orientation = _compare(thumbnails[useful[part[:, 0]]], thumbnails[useful[part[:, 1]]])
            copies = best >= threshold
            np.subtract.at(tries, part[~copies].reshape(-1), 1)
            new += [
                (*pair, float(value), int(turn))
                for pair, value, turn in zip(
                    part[copies].tolist(), best[copies], orientation[copies], strict=True
                )
            ]
        found += [
            Pair(int(useful[one]), int(useful[two]), value, _turn_name(turn)) for one, two, value, turn in new
        ]
        if new:
            edges = np.array([(one, two) for one, two, *_ in new])
            joined = np.stack([np.arange(count), group], 1)
            group = _first_of(components(np.concatenate([joined, edges]), count))
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def components(edges: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The number of the connected component of each of ``count`` nodes; ``edges`` is (n, 2)."""
    from scipy.sparse import coo_array  # here, because they take long to import
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges)), edges.T), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _first_of(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The first index with the label of each index."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def _compare(one: Thumbnail, two: Thumbnail) -> tuple[Thumbnail, npt.NDArray[np.int64]]:
    """The best correlation of each pair over the orientations of the second, and that orientation."""
    every = np.stack([np.einsum("nij,nij->n", one, turned(two, turn)) for turn in range(len(ORIENTATIONS))])
    every[1:] -= 1e-6  # of equal ones the simplest
    turn = every.argmax(axis=0)
    return np.take_along_axis(every, turn[None], axis=0)[0], turn


def _turn_name(orientation: int) -> str:
    mirrored, turns = ORIENTATIONS[orientation]
    if not mirrored:
        return _TURNS[turns]
    return f"mirrored, {_TURNS[turns]}" if turns else "mirrored"

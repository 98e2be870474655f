"""Patches of images as short vectors: local mean and spread of dense features, reduced to their principal components.

Shape legend: n patches of one image, N of several, D values of a descriptor, d principal components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.archive import Archive, ImageRecord, Window
from pscl_hpc.progress import Progress
from pscl_hpc.suggestion.features import DenseFeatures

STEP = 16
"""Distance of patches in pixels."""
BLUR = 3
"""A patch is described by so many squares of this side along each axis."""
_MARGIN = 2
"""Squares by which an image is extended by reflection on all sides, because networks see the edge of an image."""
_SIDE = 1024
"""Pixels along a side that are read at once."""
_WINDOWS = 6
"""At most so many windows of an image are read, evenly spaced."""
_FIT_IMAGES = 32
"""At most so many images, evenly spaced, determine the principal components."""
COMPONENTS = 32

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImagePatches:
    """The patches of one image that were read."""

    record: ImageRecord
    vectors: Vectors
    """(n, d)."""
    places: npt.NDArray[np.int64]
    """Row and column of each patch in the image's grid, (n, 2)."""
    grid: tuple[int, int]
    """Rows and columns of patches in the whole image."""


@dataclass(frozen=True)
class Projection:
    """Descriptors (N, D) to their principal components (N, d)."""

    mean: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]
    """(D, d)."""

    def __call__(self, descriptors: Vectors) -> Vectors:
        """Project."""
        return ((descriptors - self.mean) @ self.matrix).astype(np.float32, copy=False)


def read_patches(
    archive: Archive, records: Sequence[ImageRecord], features: DenseFeatures, *, progress: bool = False
) -> list[ImagePatches]:
    """Describe the patches of images."""
    first = {
        records[place].index
        for place in np.linspace(0, len(records) - 1, min(_FIT_IMAGES, len(records))).round().astype(int)
    }
    described: dict[int, tuple[Vectors, npt.NDArray[np.int64]]] = {}
    with Progress("describing", len(records), unit="image", show=progress) as bar:
        for record in records:
            if record.index in first:
                described[record.index] = _describe(archive, record, features)
                bar.advance()
        project = fit_projection([vectors for vectors, _ in described.values()])
        found = []
        for record in records:
            if record.index not in first:
                described[record.index] = _describe(archive, record, features)
                bar.advance()
            vectors, places = described.pop(record.index)
            grid = -(-record.height // STEP), -(-record.width // STEP)
            found.append(ImagePatches(record, project(vectors), places, grid))
    return found


def fit_projection(descriptors: Sequence[Vectors]) -> Projection:
    """Standardise each value and keep the principal components, scaled so that the mean squared distance is 2."""
    total = sum(len(vectors) for vectors in descriptors)
    mean = sum(vectors.sum(axis=0, dtype=np.float64) for vectors in descriptors) / total
    spread = sum(np.square(vectors - mean).sum(axis=0) for vectors in descriptors) / total
    scale = 1 / np.sqrt(np.where(spread > 1e-10, spread, np.inf))
    scatter = sum(_gram((vectors - mean) * scale) for vectors in descriptors) / total
    values, axes = np.linalg.eigh(scatter)
    axes = axes[:, ::-1][:, :COMPONENTS]
    kept = values[::-1][:COMPONENTS].sum()
    matrix = scale[:, None] * axes / np.sqrt(kept if kept > 0 else 1.0)
    return Projection(mean.astype(np.float32), matrix.astype(np.float32))


def _gram(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = vectors.T @ vectors
    return found


def _describe(
    archive: Archive, record: ImageRecord, features: DenseFeatures
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    vectors, places = [], []
    for window in windows_of(record):
        image = archive.read_unit(
            record.index, window, channels=features.channels, standardise=features.standardise
        )
        found = describe(image, features)
        rows, columns = np.indices(found.shape[:2])
        places.append(np.stack((rows + window[0] // STEP, columns + window[1] // STEP), -1).reshape(-1, 2))
        vectors.append(found.reshape(-1, found.shape[-1]))
    return np.concatenate(vectors), np.concatenate(places)


def describe(image: npt.NDArray[np.float32], features: DenseFeatures) -> Vectors:
    """(rows, columns, D) descriptors of the patches of an image (channels, h, w)."""
    rows, columns = (-(-side // STEP) for side in image.shape[1:])
    far = [
        max(size * STEP, features.smallest) - side
        for size, side in zip((rows, columns), image.shape[1:], strict=True)
    ]
    margin = _MARGIN * STEP
    image = np.pad(image, ((0, 0), (margin, margin + far[0]), (margin, margin + far[1])), mode="symmetric")
    grid = image.shape[1] // STEP, image.shape[2] // STEP
    inside = slice(_MARGIN, _MARGIN + rows), slice(_MARGIN, _MARGIN + columns)
    parts: list[Tensor] = []
    for found in features.maps(image):
        mean = _around(found, grid)
        square = _around(found.square(), grid)
        parts += [part[:, *inside] for part in (mean, (square - mean.square()).clamp_min(0).sqrt())]
    joined: Vectors = torch.cat(parts).permute(1, 2, 0).contiguous().numpy()
    return joined


def windows_of(record: ImageRecord) -> Iterator[Window]:
    """All windows of 1,024 pixels a side, or 6 of them."""
    corners = [
        (top, left) for top in range(0, record.height, _SIDE) for left in range(0, record.width, _SIDE)
    ]
    picked = np.linspace(0, len(corners) - 1, min(_WINDOWS, len(corners))).round().astype(int)
    for top, left in (corners[place] for place in picked):
        yield top, left, min(_SIDE, record.height - top), min(_SIDE, record.width - left)


def _around(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean over the squares of each patch."""
    squares = F.adaptive_avg_pool2d(values[None], grid)
    return F.avg_pool2d(squares, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)[0]

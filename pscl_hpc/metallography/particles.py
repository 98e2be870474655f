"""Particles of a phase: connected regions, their size and shape, and the rule for those cut by the edge.

Pixels that touch at a side or a corner belong to one particle. A particle is *cut* if it touches the edge of the image,
or a pixel that is not annotated: its size is not known. Cut particles are counted but not measured, and because large
particles are cut more often than small ones, each particle inside has the inverse of the probability of being inside as
its weight (Miles-Lantuejoul; Serra, Image Analysis and Mathematical Morphology, 1982, chapter VIII). Number density, means
and percentiles use these weights and are then free of the bias.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation
from scipy.spatial import KDTree
from skimage.measure import label, regionprops_table

Floats = npt.NDArray[np.float64]
_PIXEL_MOMENT = 1 / 12
"""Second moment of a pixel about its own centre; without it a line of pixels would have no width."""


@dataclass(frozen=True)
class Particles:
    """The particles inside an image, one value each, and counts of the others. Lengths are in pixels."""

    area: Floats
    diameter: Floats
    """Of the circle of the same area."""
    aspect: Floats
    """Major to minor axis of the ellipse with the same second moments."""
    y: Floats
    x: Floats
    """Centre of mass."""
    neighbour: Floats
    """Distance to the nearest centre of another particle, cut ones included; NaN if there is none."""
    weight: Floats
    """Particles per pixel of area that one such particle inside stands for."""
    cut: int
    """Particles cut by the edge."""
    small: int
    """Regions below the smallest size, which are no particles."""

    @property
    def inside(self) -> int:
        """Number of particles that are measured."""
        return len(self.area)


COLUMNS = tuple(field.name for field in fields(Particles) if field.name not in ("cut", "small"))


def find_particles(
    phase: npt.NDArray[np.bool_],
    known: npt.NDArray[np.bool_],
    *,
    smallest: int = 1,
    corners: bool = True,
) -> Particles:
    """Measure the particles of a phase.

    Args:
        phase: (h, w), pixels of the phase.
        known: (h, w), annotated pixels.
        smallest: Regions of fewer pixels are counted as ``small`` only.
        corners: Whether pixels that touch at a corner are connected.
    """
    return measure_regions(label(phase & known, connectivity=2 if corners else 1), known, smallest=smallest)


def measure_regions(
    regions: npt.NDArray[np.int64], known: npt.NDArray[np.bool_], *, smallest: int = 1
) -> Particles:
    """Measure labelled regions (h, w), 0 where there is none; the arguments are those of :func:`find_particles`."""
    table = {
        name: np.asarray(column)
        for name, column in regionprops_table(
            regions, properties=("label", "area", "bbox", "centroid", "inertia_tensor_eigvals")
        ).items()
    }
    large = table["area"] >= smallest
    cut = np.isin(table["label"], cut_labels(regions, known)) & large
    inside = large & ~cut
    top, left, bottom, right = frame(known)
    tall = table["bbox-2"] - table["bbox-0"]
    wide = table["bbox-3"] - table["bbox-1"]
    # Positions at which a particle of this size touches no edge.
    places = np.maximum(bottom - top - tall - 1, 1) * np.maximum(right - left - wide - 1, 1)
    area = table["area"].astype(np.float64)
    long, short = (table[f"inertia_tensor_eigvals-{axis}"] + _PIXEL_MOMENT for axis in (0, 1))
    y, x = (table[f"centroid-{axis}"].astype(np.float64) for axis in (0, 1))
    return Particles(
        area[inside],
        2 * np.sqrt(area / np.pi)[inside],
        np.sqrt(long / short)[inside],
        y[inside],
        x[inside],
        _neighbours(np.stack([y[large], x[large]], axis=1))[inside[large]],
        1 / places[inside],
        int(cut.sum()),
        int((~large).sum()),
    )


def frame(known: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Smallest rectangle (top, left, bottom, right) around the annotated pixels; zeros if there is none."""
    rows, columns = np.flatnonzero(known.any(axis=1)), np.flatnonzero(known.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def cut_labels(regions: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Labels of regions that touch the edge of the annotated rectangle, or a pixel that is not annotated."""
    top, left, bottom, right = frame(known)
    if not bottom:
        return np.zeros(0, np.int64)
    inner = regions[top:bottom, left:right]
    found = [inner[0], inner[-1], inner[:, 0], inner[:, -1]]
    unknown = ~known[top:bottom, left:right]
    if unknown.any():
        found.append(inner[binary_dilation(unknown, np.ones((3, 3), bool))])
    return np.unique(np.concatenate(found))


def _neighbours(centres: Floats) -> Floats:
    if len(centres) < 2:
        return np.full(len(centres), np.nan)
    distances, _ = KDTree(centres).query(centres, k=2)
    found: Floats = distances[:, 1]
    return found


def weighted_percentiles(values: Floats, weights: Floats, shares: tuple[float, ...]) -> list[float]:
    """Values below which these shares of the weight lie; empty input is a ValueError."""
    if not len(values):
        raise ValueError("no values")
    order = np.argsort(values)
    middle = np.cumsum(weights[order]) - weights[order] / 2
    return [float(np.interp(share * weights.sum(), middle, values[order])) for share in shares]

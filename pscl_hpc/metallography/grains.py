"""Grain size of an image in which one class is the grain boundary (ASTM E112).

Grains are the regions between boundaries. Boundaries drawn with a width are shared out among their grains first, so that
the width does not count; ends of boundaries inside a grain separate nothing and do not count either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skimage.measure import label
from skimage.segmentation import expand_labels

from pscl_hpc.metallography.lines import LineCount, count_changes
from pscl_hpc.metallography.particles import Particles, cut_labels, frame, measure_regions


@dataclass(frozen=True)
class Grains:
    """The grains of one image. Lengths are in pixels."""

    particles: Particles
    """The grains, cut ones counted only."""
    planimetric: float
    """Grains in the image by the planimetric procedure for rectangles (Saltykov): those inside, half of those at an edge,
    a quarter for each corner."""
    pixels: int
    """Annotated pixels."""
    crossings: LineCount
    """Grain boundaries on test lines."""


def find_grains(
    boundary: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_], *, smallest: int = 1
) -> Grains:
    """Find and measure the grains.

    Args:
        boundary: (h, w), pixels of grain boundaries.
        known: (h, w), annotated pixels.
        smallest: Regions of fewer pixels are no grains, and are shared out like boundaries.
    """
    # Pixels that touch at a corner only are not connected: a boundary one pixel wide may be diagonal.
    regions = label(~boundary & known, connectivity=1)
    sizes = np.bincount(regions.reshape(-1))
    small = np.flatnonzero(sizes < smallest)
    small = small[small > 0]
    regions[np.isin(regions, small)] = 0
    regions = np.where(known, expand_labels(regions, math.hypot(*regions.shape)), 0).astype(np.int64)
    found = measure_regions(regions, known)
    at_edge = set(cut_labels(regions, known).tolist()) - {0}
    at_corner = _corners(regions, known)
    whole = found.inside + len(at_edge - set(at_corner)) / 2 + len(at_corner) / 4
    particles = Particles(**{**vars(found), "small": len(small)})
    return Grains(particles, whole, int(known.sum()), count_changes(regions, known & (regions > 0)))


def number_by_area(grains_per_mm2: float) -> float:
    """Grain size number G from the number of grains per mm2 (ASTM E112)."""
    return 3.321928 * math.log10(grains_per_mm2) - 2.954


def number_by_intercept(intercept_mm: float) -> float:
    """Grain size number G from the mean lineal intercept in mm (ASTM E112)."""
    return -6.643856 * math.log10(intercept_mm) - 3.288


def _corners(regions: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> list[int]:
    """The grain at each corner of the annotated rectangle; a grain may have several corners."""
    top, left, bottom, right = frame(known)
    if not bottom:
        return []
    corners = [int(regions[y, x]) for y in (top, bottom - 1) for x in (left, right - 1)]
    return [grain for grain in corners if grain]

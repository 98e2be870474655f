"""Family "precipitates": an etched gamma / gamma-prime nickel superalloy in the scanning electron microscope.

Class 1 are large secondary precipitates, rounded and lobed cuboids with narrow channels between them. Class 2 are fine
tertiary precipitates in the wider channels, as bright as the secondary ones, so that only size and position distinguish
them. Class 3 are rare blocky carbides. Relief rims, etch pits and dust belong to the class around them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pscl_hpc.archive.synthesis.exposure import Batch, Specimen, micrometres_per_pixel
from pscl_hpc.archive.synthesis.fields import (
    Shape,
    at_sites,
    block,
    dots,
    ellipse,
    jittered_sites,
    noise,
    power_diagram,
    stamp,
    warped_grid,
)

CLASSES = ("gamma matrix", "secondary gamma-prime", "tertiary gamma-prime", "carbide")
ALLOY = "synthetic nickel superalloy"

BATCHES = (
    Batch(
        "aged-4h", 20000, 0.20, (0.60, 0.47, 0.46, 0.66), (0, -1.6, -1.4, 1.2),
        rim=1.4, edge=0.8, noise=0.022, noise_length=0.9, line_noise=0.005, texture=0.015,
    ),
    Batch(
        "aged-8h", 15000, 0.33, (0.44, 0.33, 0.33, 0.49), (0, -2.2, -1.5, 1.6),
        rim=1.6, edge=0.9, noise=0.03, noise_length=1.0, relief=0.14, blur=1.1, texture=0.02,
    ),
    Batch(
        "aged-16h", 12000, 0.42, (0.73, 0.65, 0.64, 0.76), (0, -1.3, -1.2, 1.0),
        rim=1.2, edge=0.9, noise=0.013, noise_length=1.2, shading=0.08, scratches=4.0, texture=0.012,
    ),
    Batch(
        "aged-32h", 12000, 0.50, (0.30, 0.44, 0.43, 0.22), (0, 1.5, 1.1, -1.2),
        rim=1.5, edge=0.9, noise=0.04, noise_length=0.8, line_noise=0.01, shading=0.12, texture=0.02, inverted=True,
    ),
    Batch(
        "aged-64h", 10000, 0.56, (0.58, 0.28, 0.34, 0.66), (0, -4.0, -2.0, 2.0),
        rim=2.0, edge=0.8, relief=0.08, noise=0.012, noise_length=1.6, charging=0.25, stains=0.2,
    ),
    Batch(
        "aged-128h", 8000, 0.80, (0.47, 0.35, 0.34, 0.52), (0, -2.2, -1.8, 1.7),
        rim=1.3, edge=0.9, noise=0.022, noise_length=1.2, blur=1.1, shading=0.10, stains=1.0, texture=0.02,
    ),
)  # fmt: skip


def _secondary(
    style: np.random.Generator, rng: np.random.Generator, shape: Shape, size: float
) -> NDArray[np.bool_]:
    """Large precipitates: shrunk cells of a disordered square lattice, rounded, lobed and split, (h, w)."""
    angle, inset = style.uniform(0, np.pi / 2), style.uniform(0.05, 0.075)
    lobes, empty = style.uniform(0.04, 0.07), style.uniform(0.14, 0.24)
    y, x = warped_grid(rng, shape, 0.09 * size, 0.4 * size)
    sites = jittered_sites(rng, shape, 0.8 * size, jitter=0.36, angle=angle, keep=0.85, margin=2.5 * size)
    cells = power_diagram(sites, rng.uniform(0, 0.2, len(sites)) * size**2, y, x)
    # A soft minimum of the distances to the two nearest walls rounds the corners.
    radius = 0.10 * size
    apart = np.clip((cells.second_wall - cells.wall) / radius, 0.0, 30.0)
    depth = cells.wall - radius * np.log1p(np.exp(-apart))
    insets = rng.uniform(0.3, 1.3, cells.count) * inset
    insets += np.where(rng.uniform(size=cells.count) < empty, rng.uniform(0.1, 0.4, cells.count), 0.0)
    level = np.minimum(depth, 0.3 * size) - insets[cells.cell] * size
    level += lobes * size * (0.7 * noise(rng, shape, 0.17 * size) + 0.8 * noise(rng, shape, 0.3 * size))
    # Splitting precipitates: thin clefts of matrix that begin at the outline.
    cleft = np.exp(-((noise(rng, shape, 0.45 * size) / 0.1) ** 2)) * (noise(rng, shape, 0.7 * size) > 0.3)
    level -= 0.3 * size * cleft
    # Neighbours never touch: coherent precipitates keep a channel of matrix between them.
    level = np.minimum(level, cells.wall - 0.045 * size - 0.6)
    inside: NDArray[np.bool_] = ndimage.gaussian_filter(level, 0.03 * size + 0.5, mode="nearest") > 0.0
    return inside


def _tertiary(
    style: np.random.Generator, rng: np.random.Generator, secondary: NDArray[np.bool_], size: float
) -> NDArray[np.bool_]:
    """Fine precipitates in the channels, separated from the large ones by a depleted zone, (h, w)."""
    shape: Shape = (secondary.shape[0], secondary.shape[1])
    radius = float(np.clip(style.uniform(0.048, 0.062) * size, 1.7, 3.8))
    if secondary.all():
        return np.zeros(shape, dtype=bool)
    clearance = ndimage.distance_transform_edt(~secondary) if secondary.any() else np.full(shape, np.inf)
    sites = jittered_sites(rng, shape, 3.0 * radius, jitter=0.38, margin=radius)
    crowding = noise(rng, shape, 0.5 * size)
    radii = radius * rng.lognormal(0.0, 0.22, len(sites))
    keep = at_sites(clearance, sites) > radii + rng.uniform(0.8, 2.2, len(sites))
    keep &= at_sites(crowding, sites) + rng.normal(0, 0.4, len(sites)) > -0.5
    mask = np.zeros(shape, dtype=bool)
    y, x = warped_grid(rng, shape, 0.4, 2.5)
    for centre, r, ratio, turn in zip(
        sites[keep],
        radii[keep],
        rng.uniform(0.7, 1.0, keep.sum()),
        rng.uniform(0, np.pi, keep.sum()),
        strict=True,
    ):
        stamp(mask, y, x, centre, 1.2 * r, ellipse(r / ratio**0.5, r * ratio**0.5, turn))
    return mask & (clearance > 1.0)


def specimen(style: np.random.Generator, rng: np.random.Generator, shape: Shape, batch: Batch) -> Specimen:
    """Make one field of view.

    Args:
        style: generator for what the fields of a specimen have in common (lattice direction, channels, carbides).
        rng: generator for everything else.
        shape: (h, w) in pixels.
        batch: its feature size is the mean diameter of a secondary precipitate.
    """
    size = batch.feature_um / micrometres_per_pixel(batch.magnification) * style.uniform(0.85, 1.2)
    carbides = style.uniform(2.0, 4.5)
    secondary = _secondary(style, rng, shape, size)
    tertiary = _tertiary(style, rng, secondary, size)
    mask = np.where(secondary, 1, np.where(tertiary, 2, 0)).astype(np.uint8)
    rare = np.zeros(shape, dtype=bool)
    y, x = warped_grid(rng, shape, 0.9, 5.0)
    for centre in rng.uniform(0, 1, (rng.poisson(carbides * y.size / 65536.0), 2)) * shape:
        radius = rng.uniform(7.0, 13.0)
        stamp(rare, y, x, centre, 1.6 * radius, block(rng, radius))
    mask[rare] = 3

    tone = np.array(batch.greys)[mask]
    tone += batch.texture * np.array([1.0, 0.8, 0.4, 0.7])[mask] * noise(rng, shape, 2.4)
    tone += 0.7 * batch.texture * noise(rng, shape, 0.35 * size)
    # Bright dust, which belongs to the class around it.
    dust = dots(rng, shape, 30000.0, (0.8, 2.2))
    tone += 0.2 * dust
    height = np.array(batch.heights, dtype=float)[mask] + dust
    # Etching is uneven: rough surfaces inside the precipitates and small pits.
    height += 0.4 * noise(rng, shape, 5.0) * (mask == 1)
    height += 0.15 * noise(rng, shape, 4.0)
    return Specimen(mask, tone, height)

"""Family "particles": spheroidised high-carbon steel with a proeutectoid carbide network, in the electron microscope.

Class 1 are spheroidised carbide particles of two generations. Class 2 is proeutectoid carbide: smooth bands along the
prior grain boundaries, about as bright as the matrix, so that only rim and texture distinguish them, and packets of
acicular plates. Class 3 are rare pores. Contamination stains and dark boundary lines look like pores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pscl_hpc.archive.synthesis.exposure import Batch, Specimen, micrometres_per_pixel
from pscl_hpc.archive.synthesis.fields import (
    Field,
    Shape,
    at_sites,
    bar,
    ellipse,
    jittered_sites,
    noise,
    power_diagram,
    stamp,
    warped_grid,
)

CLASSES = ("matrix", "spheroidised particle", "proeutectoid carbide", "pore")
ALLOY = "synthetic ultra-high-carbon steel"

BATCHES = (
    Batch(
        "spheroidised-1h", 1500, 0.40, (0.45, 0.68, 0.40, 0.14), (0, 1.6, 1.6, -2.5),
        rim=0.8, edge=1.2, noise=0.022, noise_length=0.9, texture=0.03, blur=0.7,
    ),
    Batch(
        "spheroidised-3h", 1500, 0.50, (0.32, 0.54, 0.29, 0.10), (0, 1.6, 1.6, -2.0),
        rim=0.8, edge=1.3, noise=0.022, noise_length=1.1, line_noise=0.006, texture=0.02, stains=1.5,
    ),
    Batch(
        "spheroidised-8h", 1200, 0.65, (0.58, 0.40, 0.55, 0.30), (0, -1.4, -1.5, -2.4),
        rim=0.9, edge=0.8, noise=0.018, noise_length=1.2, shading=0.10, blur=0.9, scratches=2.0, texture=0.018,
        inverted=True,
    ),
    Batch(
        "spheroidised-24h", 1000, 0.90, (0.38, 0.55, 0.45, 0.20), (0, 1.5, 1.4, -2.0),
        rim=1.0, edge=1.0, noise=0.04, noise_length=0.8, line_noise=0.01, charging=0.3, texture=0.02,
    ),
    Batch(
        "slow-cooled", 1200, 0.75, (0.58, 0.74, 0.62, 0.34), (0, 1.4, 1.4, -2.0),
        rim=1.1, edge=0.7, noise=0.016, noise_length=1.5, blur=0.9, shading=0.12, texture=0.03,
    ),
    Batch(
        "quenched", 2000, 0.32, (0.48, 0.58, 0.46, 0.36), (0, 1.8, 1.8, -1.6),
        rim=0.8, edge=0.9, relief=0.13, noise=0.028, noise_length=0.8, texture=0.03, stains=1.0, scratches=3.0,
    ),
)  # fmt: skip


def _plates(style: np.random.Generator, rng: np.random.Generator, shape: Shape) -> NDArray[np.bool_]:
    """Packets of parallel acicular plates with gaps, (h, w)."""
    mask = np.zeros(shape, dtype=bool)
    y, x = warped_grid(rng, shape, 0.8, 9.0)
    variants = style.uniform(0, np.pi) + np.array([0.0, 1.05, 2.1])
    for centre in rng.uniform(0, 1, (rng.poisson(1.3 * y.size / 65536.0), 2)) * shape:
        angle = rng.choice(variants) + rng.normal(0, 0.05)
        spacing, count = rng.uniform(6.0, 10.0), int(rng.integers(2, 7))
        for row in range(count):
            offset = (row - (count - 1) / 2) * spacing + rng.normal(0, 0.8)
            shift = rng.normal(0, 12.0)
            length, width = rng.uniform(22, 75), rng.uniform(1.5, 2.9)
            spot = centre + offset * np.array([np.cos(angle), -np.sin(angle)])
            spot = spot + shift * np.array([np.sin(angle), np.cos(angle)])
            stamp(mask, y, x, spot, length, bar(length, width, angle + rng.normal(0, 0.02)))
    return mask & (noise(rng, shape, 6.0) > -1.4)


def _spheroids(
    rng: np.random.Generator, free: NDArray[np.bool_], clearance: Field, radius: float, flow: float
) -> NDArray[np.bool_]:
    """Spheroidised particles where ``free``, coarse ones first and fine ones between them, (h, w)."""
    shape: Shape = (free.shape[0], free.shape[1])
    mask = np.zeros(shape, dtype=bool)
    crowding = noise(rng, shape, 9.0 * radius)
    y, x = warped_grid(rng, shape, 0.16 * radius + 0.2, 1.2 * radius)
    for scale, pitch, threshold in ((1.0, 4.8, -0.2), (0.5, 5.0, -0.4)):
        r0 = max(1.1, scale * radius)
        sites = jittered_sites(rng, shape, pitch * r0, jitter=0.45, margin=r0)
        radii = np.clip(r0 * rng.lognormal(0.0, 0.3, len(sites)), 1.0, 2.2 * r0)
        ratios = rng.uniform(0.45, 1.0, len(sites))
        turns = np.where(rng.uniform(size=len(sites)) < 0.5, flow, 0.0) + rng.normal(0, 0.8, len(sites))
        keep = at_sites(clearance, sites) > radii + 1.5
        keep &= at_sites(crowding, sites) + rng.normal(0, 0.5, len(sites)) > threshold
        keep &= at_sites(ndimage.binary_dilation(mask, iterations=int(np.ceil(r0)) + 1), sites) == 0
        for centre, r, ratio, turn in zip(sites[keep], radii[keep], ratios[keep], turns[keep], strict=True):
            stamp(mask, y, x, centre, 1.5 * r, ellipse(r / ratio**0.5, r * ratio**0.5, turn))
    return mask & free


def specimen(style: np.random.Generator, rng: np.random.Generator, shape: Shape, batch: Batch) -> Specimen:
    """Make one field of view.

    Args:
        style: generator for what the fields of a specimen have in common (network width, plate variants, porosity).
        rng: generator for everything else.
        shape: (h, w) in pixels.
        batch: its feature size is the diameter of a coarse spheroidised particle.
    """
    radius = batch.feature_um / micrometres_per_pixel(batch.magnification) * style.uniform(0.45, 0.55)
    prior, half = style.uniform(130, 200), style.uniform(5.0, 11.0)
    denuded, pores = style.uniform(3.0, 12.0), style.uniform(3.5, 7.0)

    y, x = warped_grid(rng, shape, 0.07 * prior, 0.3 * prior)
    y, x = y + 1.8 * noise(rng, shape, 7.0), x + 1.8 * noise(rng, shape, 7.0)
    sites = jittered_sites(rng, shape, prior, jitter=0.5, margin=2.5 * prior)
    cells = power_diagram(sites, np.zeros(len(sites)), y, x)
    width = cells.pair_value(np.where(rng.uniform(size=997) < 0.7, half, 0.0)) * (
        1.0 + 0.45 * noise(rng, shape, 45.0)
    )
    network = cells.wall < width
    plates = _plates(style, rng, shape) & ~network
    carbide = network | plates
    clearance = ndimage.distance_transform_edt(~carbide) if carbide.any() else np.full(shape, np.inf)
    away = clearance - denuded * (cells.wall < width + denuded + 2.0) * (0.7 + 0.3 * noise(rng, shape, 12.0))
    spheroids = _spheroids(rng, ~carbide, away, radius, rng.uniform(0, np.pi))
    mask = np.where(carbide, 2, np.where(spheroids, 1, 0)).astype(np.uint8)
    rare = np.zeros(shape, dtype=bool)
    wobble_y, wobble_x = warped_grid(rng, shape, 1.3, 3.5)
    for centre in rng.uniform(0, 1, (rng.poisson(pores * y.size / 65536.0), 2)) * shape:
        r, ratio = rng.uniform(5.0, 10.0), rng.uniform(0.6, 1.0)
        stamp(rare, wobble_y, wobble_x, centre, 1.3 * r, ellipse(r, r * ratio, rng.uniform(0, np.pi)))
    mask[rare] = 3

    tone = np.array(batch.greys)[mask]
    # Plates are thin and inclined, so they have some of the brightness of the particles.
    thin = plates & (mask == 2)
    tone += np.where(thin, 0.5 * (batch.greys[1] - batch.greys[2]), 0.0)
    rough = 0.7 * noise(rng, shape, 2.0) + 0.7 * noise(rng, shape, 6.0)
    tone += batch.texture * np.array([1.0, 0.5, 0.2, 0.8])[mask] * rough
    grain_tone = 0.03 * rng.standard_normal(cells.count)[cells.cell]
    tone += np.where(mask == 0, grain_tone, 0.0)
    height = np.array(batch.heights, dtype=float)[mask]
    height += 0.2 * noise(rng, shape, 2.5) * (mask == 0) + 0.8 * noise(rng, shape, 9.0) * (mask == 3)
    # Ferrite boundaries: thin dark lines that belong to the matrix.
    lines = np.exp(-((noise(rng, shape, 22.0) / 0.03) ** 2)) * (mask == 0) * (noise(rng, shape, 30.0) > 0.2)
    tone -= 0.22 * lines
    height -= 0.6 * lines
    return Specimen(mask, tone, height)

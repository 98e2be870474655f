"""Family "grains": a polished and etched two-constituent grain structure, as in ferrite-pearlite steel.

Class 0 are equiaxed grains with orientation contrast. Class 1 are lamellar colonies, whose mean brightness is within
the range of the grains, so that only their texture distinguishes them. Class 2 is a boundary phase, a film of varying
thickness on some boundaries with pools at triple points. Class 3 are rare inclusions and pores. Boundaries without film
(grooves), etch pits and scratches belong to the class around them.
"""

from __future__ import annotations

import numpy as np

from pscl_hpc.archive.synthesis.exposure import Batch, Specimen, micrometres_per_pixel
from pscl_hpc.archive.synthesis.fields import (
    Cells,
    Field,
    Shape,
    dots,
    ellipse,
    jittered_sites,
    noise,
    power_diagram,
    stamp,
    warped_grid,
)

CLASSES = ("grain", "lamellar colony", "boundary phase", "inclusion")
ALLOY = "synthetic ferrite-pearlite steel"

BATCHES = (
    Batch(
        "normalised-1h", 500, 8.0, (0.66, 0.50, 0.86, 0.22), (0, 0.3, 1.0, -1.5),
        noise=0.025, noise_length=1.2, shading=0.06,
    ),
    Batch(
        "annealed-4h", 400, 12.0, (0.56, 0.45, 0.32, 0.20), (0, 0.0, -1.2, -2.0),
        blur=1.0, noise=0.03, shading=0.10, scratches=2.5,
    ),
    Batch(
        "annealed-16h", 300, 15.0, (0.44, 0.47, 0.68, 0.78), (0, 0.5, 1.6, 1.8),
        noise=0.06, noise_length=0.8, line_noise=0.008, charging=0.35, edge=1.2,
    ),
    Batch(
        "annealed-64h", 250, 19.0, (0.70, 0.56, 0.50, 0.34), (0, 0.6, -0.8, -1.8),
        blur=1.3, noise=0.02, noise_length=2.0, shading=0.14, stains=1.5,
    ),
    Batch(
        "quenched-tempered", 800, 6.0, (0.36, 0.40, 0.24, 0.16), (0, 0.8, -1.2, -1.5),
        noise=0.045, noise_length=1.0, line_noise=0.012, edge=1.5, relief=0.16,
    ),
    Batch(
        "furnace-cooled", 200, 25.0, (0.50, 0.60, 0.78, 0.70), (0, -0.4, 0.9, 1.4),
        blur=0.9, noise=0.035, noise_length=1.6, shading=0.08, scratches=3.0, charging=0.2,
    ),
)  # fmt: skip


def _lamellae(rng: np.random.Generator, shape: Shape, cells: Cells, size: float) -> Field:
    """Striped texture, -1 to 1, whose direction, phase and spacing change from colony to colony, (h, w)."""
    y, x = warped_grid(rng, shape, 1.6, 0.35 * size)
    direction = rng.uniform(0, np.pi, cells.count)[cells.cell]
    spacing = rng.uniform(3.0, 5.5, cells.count)[cells.cell]
    stripes = np.sin(2 * np.pi * (y * np.cos(direction) + x * np.sin(direction)) / spacing)
    return np.tanh(2.0 * (stripes + 0.45 * noise(rng, shape, 2.5)))


def specimen(style: np.random.Generator, rng: np.random.Generator, shape: Shape, batch: Batch) -> Specimen:
    """Make one field of view.

    Args:
        style: generator for what the fields of a specimen have in common (grain size, phase fractions, rolling
        direction).
        rng: generator for everything else.
        shape: (h, w) in pixels.
        batch: its feature size is the mean grain diameter.
    """
    size = batch.feature_um / micrometres_per_pixel(batch.magnification) * style.uniform(0.85, 1.2)
    share = style.uniform(0.22, 0.36)
    film_share, film = style.uniform(0.35, 0.6), style.uniform(1.3, 2.4)
    rolling = style.normal(0.0, 0.25)
    inclusions = style.uniform(4.0, 9.0)

    y, x = warped_grid(rng, shape, 0.07 * size, 0.3 * size)
    sites = jittered_sites(rng, shape, size, jitter=0.55, keep=0.9, margin=2.5 * size)
    cells = power_diagram(sites, rng.uniform(0, 0.15, len(sites)) * size**2, y, x)
    visible = np.unique(cells.cell)
    lamellar = np.isin(cells.cell, rng.permutation(visible)[: max(1, round(share * len(visible)))])

    # Boundary phase: the thickness differs by boundary and is 0 for many; pools are where three grains meet.
    thickness = np.where(rng.uniform(size=997) < film_share, rng.lognormal(0.0, 0.35, 997) * film, 0.0)
    half = cells.pair_value(thickness) * (1.0 + 0.35 * noise(rng, shape, 0.25 * size))
    pool = film * rng.uniform(0.0, 4.2, 997)[(cells.cell + cells.neighbour) % 997]
    boundary = (cells.wall < half) | (cells.wall + 0.7 * cells.second_wall < pool * (half > 0))

    mask = np.where(lamellar, 1, 0).astype(np.uint8)
    mask[boundary] = 2
    rare = np.zeros(shape, dtype=bool)
    wobble_y, wobble_x = warped_grid(rng, shape, 0.7, 3.0)
    for centre in rng.uniform(0, 1, (rng.poisson(inclusions * y.size / 65536.0), 2)) * shape:
        radius, ratio = rng.uniform(4.0, 8.0), rng.uniform(0.45, 1.0)
        outline = ellipse(radius / ratio**0.5, radius * ratio**0.5, rolling + rng.normal(0, 0.15))
        stamp(rare, wobble_y, wobble_x, centre, radius / ratio**0.5, outline)
    mask[rare] = 3

    tone = np.array(batch.greys)[mask]
    grain_tone = 0.085 * np.clip(rng.standard_normal(cells.count), -1.8, 1.8)[cells.cell]
    tone += np.where(mask == 0, grain_tone, 0.4 * grain_tone)
    colonies = power_diagram(
        colony_sites := jittered_sites(rng, shape, 0.6 * size, margin=1.5 * size),
        np.zeros(len(colony_sites)),
        y,
        x,
    )
    stripes = _lamellae(rng, shape, colonies, size) * (mask == 1)
    tone += 0.13 * stripes
    tone += batch.texture * noise(rng, shape, 2.2) * (mask < 2)
    tone += 0.6 * batch.texture * noise(rng, shape, 9.0)

    height = np.array(batch.heights, dtype=float)[mask]
    height += np.where(mask == 0, 0.5 * rng.standard_normal(cells.count)[cells.cell], 0.0) + 0.5 * stripes
    # Etching makes a dark groove along every boundary, with or without film.
    groove = np.exp(-((cells.wall / 0.9) ** 2)) * (mask < 2)
    # Etch pits, small and dark, belong to no class.
    pits = dots(rng, shape, 4000.0, (0.7, 1.7)) * (mask < 2)
    tone -= 0.17 * groove + 0.25 * pits
    height -= 0.8 * groove + 0.8 * pits
    return Specimen(mask, tone, height)

"""Random building blocks of synthetic microstructures: smooth noise, site patterns, cell diagrams and stamps.

Coordinates are (row y, column x) in pixels, with pixel centres at integers. Fields are float64 arrays of shape (h, w).
Every function draws random numbers only from the generator that it is given, so a picture is a pure function of its
seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Field = NDArray[np.float64]
Labels = NDArray[np.uint8]
Shape = tuple[int, int]

_SPLINE_ENERGY = 151.0 / 315.0  # integral of the squared cubic B-spline: variance of 1-D spline noise


def generator(*key: int) -> np.random.Generator:
    """Counter-based generator for a tuple of non-negative integers, the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _spline_basis(length: int, step: float, phase: float) -> Field:
    """Cubic B-spline interpolation matrix, (length, knots), knots ``step`` pixels apart."""
    knots = int(np.ceil((length - 1) / step + phase)) + 4
    distance = np.abs((np.arange(length) / step + phase)[:, None] + 1.0 - np.arange(knots)[None, :])
    inner = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    outer = np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0
    return np.where(distance < 1.0, inner, outer)


def noise(rng: np.random.Generator, shape: Shape, length: float, stretch: float = 1.0) -> Field:
    """Smooth Gaussian noise of zero mean and unit variance, correlated over ``length`` pixels, (h, w).

    ``stretch`` multiplies the correlation length along x, as in a rolled texture. Below 1 pixel noise is uncorrelated.
    """
    step_y, step_x = length, length * stretch
    if step_y < 1.0:
        return rng.standard_normal(shape)
    # A random knot phase, because the variance of spline noise is slightly uneven and would show a fixed grid.
    phase_y, phase_x = rng.uniform(0.0, 1.0, 2)
    along_y = _spline_basis(shape[0], step_y, phase_y)
    along_x = _spline_basis(shape[1], step_x, phase_x)
    knots = rng.standard_normal((along_y.shape[1], along_x.shape[1]))
    return along_y @ knots @ along_x.T / _SPLINE_ENERGY


def pixel_grid(shape: Shape) -> tuple[Field, Field]:
    """Row and column coordinate of every pixel, two arrays (h, w)."""
    y, x = np.meshgrid(np.arange(shape[0], dtype=float), np.arange(shape[1], dtype=float), indexing="ij")
    return y, x


def warped_grid(
    rng: np.random.Generator, shape: Shape, amplitude: float, length: float
) -> tuple[Field, Field]:
    """Pixel coordinates displaced by smooth noise, to bend straight outlines, two arrays (h, w)."""
    y, x = pixel_grid(shape)
    return y + amplitude * noise(rng, shape, length), x + amplitude * noise(rng, shape, length)


def jittered_sites(
    rng: np.random.Generator,
    shape: Shape,
    spacing: float,
    *,
    jitter: float = 0.5,
    angle: float = 0.0,
    keep: float = 1.0,
    margin: float = 0.0,
) -> Field:
    """Points of a rotated square grid, each moved by up to ``jitter`` spacings, (sites, 2) as (y, x).

    The points cover the picture and ``margin`` pixels around it; a random share ``keep`` of them is returned. Unlike
    Poisson points they keep a distance, as grains and precipitates do.
    """
    reach = 0.5 * float(np.hypot(*shape)) + margin + spacing
    count = int(np.ceil(reach / spacing))
    ticks = np.arange(-count, count + 1) * spacing
    grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid + rng.uniform(-jitter, jitter, grid.shape) * spacing + rng.uniform(-0.5, 0.5, 2) * spacing
    grid = grid[rng.uniform(size=len(grid)) < keep]
    cosine, sine = np.cos(angle), np.sin(angle)
    centre = (np.array(shape, dtype=float) - 1.0) / 2.0
    sites: Field = grid @ np.array([[cosine, sine], [-sine, cosine]]) + centre
    inside = np.all((sites >= -margin) & (sites <= np.array(shape) - 1.0 + margin), axis=1)
    return sites[inside]


@dataclass(frozen=True)
class Cells:
    """Power diagram: for each pixel its cell, the neighbouring cell and the distances of the two nearest walls
    (pixels)."""

    cell: NDArray[np.int64]
    neighbour: NDArray[np.int64]
    wall: Field
    second_wall: Field
    count: int

    def pair_value(self, values: Field) -> Field:
        """Value of the wall between a pixel's two cells, drawn from ``values`` by a symmetric hash, (h, w)."""
        low = np.minimum(self.cell, self.neighbour)
        high = np.maximum(self.cell, self.neighbour)
        value: Field = values[(low * 73_856_093 + high * 19_349_663) % len(values)]
        return value


def power_diagram(sites: Field, weights: Field, y: Field, x: Field) -> Cells:
    """Cells of a power diagram (a Voronoi diagram with weighted sites) at the coordinates (y, x).

    Args:
        sites: (sites, 2).
        weights: (sites,) in square pixels; a larger weight gives a larger cell.
        y, x: (h, w), usually of :func:`warped_grid`.

    A weighted site is an ordinary site at the height sqrt(max weight - weight) above the plane, so a nearest-neighbour
    tree gives the exact answer (Aurenhammer, SIAM J. Comput. 16, 1987).
    """
    far = 1e4 * (1.0 + np.arange(3.0))[:, None] * np.array([[1.0, 1.0]])
    sites = np.concatenate([sites, far])
    lift = np.sqrt(np.concatenate([weights.max(initial=0.0) - weights, np.zeros(3)]))
    lifted = np.concatenate([sites, lift[:, None]], axis=1)
    points = np.stack([y.ravel(), x.ravel(), np.zeros(y.size)], axis=1)
    distance, index = cKDTree(lifted).query(points, k=3)
    power = distance**2
    own, second, third = (sites[index[:, k]] for k in range(3))
    wall = (power[:, 1] - power[:, 0]) / (2.0 * np.linalg.norm(second - own, axis=1) + 1e-9)
    second_wall = (power[:, 2] - power[:, 0]) / (2.0 * np.linalg.norm(third - own, axis=1) + 1e-9)
    shape = y.shape
    return Cells(
        cell=index[:, 0].reshape(shape).astype(np.int64),
        neighbour=index[:, 1].reshape(shape).astype(np.int64),
        wall=wall.reshape(shape),
        second_wall=second_wall.reshape(shape),
        count=len(sites),
    )


Outline = Callable[[Field, Field], Field]
"""A shape: (dy, dx) from its centre in pixels -> a field that is below 1 inside and above 1 outside."""


def stamp(mask: NDArray[np.bool_], y: Field, x: Field, centre: Field, reach: float, outline: Outline) -> None:
    """Set ``mask`` inside one shape, which extends at most ``reach`` pixels (plus the warp) from ``centre``."""
    pad = reach + 3.0
    top, left = (max(0, int(np.floor(c - pad))) for c in centre)
    bottom, right = (min(n, int(np.ceil(c + pad)) + 1) for c, n in zip(centre, mask.shape, strict=True))
    if top >= bottom or left >= right:
        return
    window = (slice(top, bottom), slice(left, right))
    mask[window] |= outline(y[window] - centre[0], x[window] - centre[1]) < 1.0


def ellipse(long: float, short: float, angle: float) -> Outline:
    """Ellipse with half-axes ``long`` (along ``angle``, measured from x) and ``short``, in pixels."""
    cosine, sine = np.cos(angle), np.sin(angle)

    def gauge(dy: Field, dx: Field) -> Field:
        along = (dx * cosine + dy * sine) / long
        across = (dy * cosine - dx * sine) / short
        value: Field = along * along + across * across
        return value

    return gauge


def dots(rng: np.random.Generator, shape: Shape, pixels_per_dot: float, radii: tuple[float, float]) -> Field:
    """1 in round dots at random places and 0 elsewhere, (h, w); their radii are uniform in a range of pixels."""
    mask = np.zeros(shape, dtype=bool)
    y, x = pixel_grid(shape)
    for centre in rng.uniform(0, 1, (rng.poisson(shape[0] * shape[1] / pixels_per_dot), 2)) * shape:
        radius = rng.uniform(*radii)
        stamp(mask, y, x, centre, radius, ellipse(radius, radius, 0.0))
    return mask.astype(float)


def block(rng: np.random.Generator, radius: float) -> Outline:
    """Faceted convex crystal of about ``radius`` pixels, such as blocky carbides."""
    sides = int(rng.integers(4, 7))
    angles = (
        rng.uniform(0, 2 * np.pi) + 2 * np.pi * (np.arange(sides) + rng.uniform(-0.2, 0.2, sides)) / sides
    )
    reach = radius * rng.uniform(0.65, 1.1, sides)

    def gauge(dy: Field, dx: Field) -> Field:
        faces = [(dx * np.cos(a) + dy * np.sin(a)) / r for a, r in zip(angles, reach, strict=True)]
        value: Field = np.maximum.reduce(faces)
        return value

    return gauge


def bar(length: float, width: float, angle: float) -> Outline:
    """Needle of half-length ``length`` that tapers from half-width ``width`` at its middle, in pixels."""
    cosine, sine = np.cos(angle), np.sin(angle)

    def gauge(dy: Field, dx: Field) -> Field:
        along = np.abs(dx * cosine + dy * sine) / length
        across = np.abs(dy * cosine - dx * sine) / width
        value: Field = across + along**4
        return value

    return gauge


def at_sites(field: Field | NDArray[np.bool_], sites: Field) -> NDArray[np.float64]:
    """Values of ``field`` at the pixels nearest to ``sites``; sites outside take the edge value, (sites,)."""
    rows = np.clip(np.rint(sites[:, 0]), 0, field.shape[0] - 1).astype(np.int64)
    columns = np.clip(np.rint(sites[:, 1]), 0, field.shape[1] - 1).astype(np.int64)
    return np.asarray(field[rows, columns], dtype=np.float64)

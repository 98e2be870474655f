"""The microscope: from a specimen (phases, brightness, relief) to an 8-bit picture.

Secondary-electron yield grows with the slope of the surface (about 1/cos of the tilt), so relief steps at phase
boundaries are bright; a side-mounted detector adds a directional term. Polishing scratches, beam contamination,
charging streaks along the fast scan direction, uneven illumination, blur and noise are added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from pscl_hpc.archive.synthesis.fields import Field, Labels, noise, pixel_grid


@dataclass(frozen=True)
class Batch:
    """One production batch: its heat treatment and imaging conditions.

    Lengths are in pixels unless stated otherwise; brightness is between 0 and 1.
    """

    name: str
    magnification: float
    feature_um: float
    """Size of the characteristic features in micrometres (grains, precipitates or particles)."""
    greys: tuple[float, float, float, float]
    """Mean brightness of the four classes."""
    heights: tuple[float, float, float, float]
    """Height of the four classes above the polished surface after etching."""
    texture: float = 0.03
    """Brightness of the in-phase texture of the matrix."""
    blur: float = 0.8
    rim: float = 1.3
    """Width over which a relief step is rounded."""
    edge: float = 0.8
    """Brightness per unit of (1/cos(tilt) - 1)."""
    relief: float = 0.1
    """Brightness per unit of slope towards the detector."""
    noise: float = 0.03
    noise_length: float = 1.0
    line_noise: float = 0.0
    shading: float = 0.05
    charging: float = 0.0
    scratches: float = 1.0
    """Mean number of scratches in 256 x 256 pixels."""
    stains: float = 0.5
    """Mean number of contamination stains in 256 x 256 pixels."""
    inverted: bool = False
    """The common phases have the opposite contrast to every other batch of the family."""


@dataclass(frozen=True)
class Specimen:
    """The imaged surface, all (h, w): class index, brightness 0 to 1, height in pixels."""

    mask: Labels
    tone: Field
    height: Field


def micrometres_per_pixel(magnification: float) -> float:
    """Pixel size for a display pixel of 0.1 mm, the usual meaning of magnification on a print or screen."""
    return 100.0 / magnification


def _scratches(rng: np.random.Generator, shape: tuple[int, int], mean: float) -> Field:
    """Height of polishing scratches: long narrow grooves in one or two directions, (h, w)."""
    y, x = pixel_grid(shape)
    height = np.zeros(shape)
    direction = rng.uniform(0, np.pi)
    diagonal = float(np.hypot(*shape))
    for _ in range(min(40, rng.poisson(mean * diagonal / 362.0))):
        angle = direction + rng.normal(0, 0.06) + (np.pi / 3 if rng.uniform() < 0.25 else 0.0)
        centre = rng.uniform(0, 1, 2) * shape
        across = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
        along = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
        across = across + rng.normal(0, 6e-4) * along**2 / 4
        half = rng.uniform(0.15, 0.8) * diagonal
        fade = np.clip((half - np.abs(along)) / (0.3 * half), 0, 1)
        height -= rng.uniform(0.2, 0.9) * fade * np.exp(-((across / rng.uniform(0.6, 1.1)) ** 2))
    return height


def _stains(rng: np.random.Generator, shape: tuple[int, int], mean: float) -> Field:
    """Brightness removed by contamination: diffuse dark blots with a ragged outline, (h, w)."""
    y, x = pixel_grid(shape)
    stain = np.zeros(shape)
    count = min(20, rng.poisson(mean * shape[0] * shape[1] / 65536.0))
    ragged = noise(rng, shape, 7.0) * 0.35 if count else stain
    for _ in range(count):
        centre = rng.uniform(0, 1, 2) * shape
        radius = rng.uniform(6, 26)
        distance = np.hypot(y - centre[0], (x - centre[1]) * rng.uniform(0.6, 1.4)) / radius
        stain = stain + rng.uniform(0.06, 0.22) * np.exp(-((distance + ragged) ** 2))
    return stain


def _shading(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """Uneven illumination or detector response: a tilted paraboloid, about -1 to 1, (h, w)."""
    y, x = pixel_grid(shape)
    v, u = 2 * y / max(1, shape[0] - 1) - 1, 2 * x / max(1, shape[1] - 1) - 1
    slope_y, slope_x = rng.normal(0, 0.6, 2)
    shading: Field = slope_y * v + slope_x * u - rng.uniform(0.0, 0.7) * (u**2 + v**2 - 2.0 / 3.0)
    return shading


def expose(rng: np.random.Generator, specimen: Specimen, batch: Batch) -> NDArray[np.uint8]:
    """Take the picture, uint8 (h, w)."""
    shape = specimen.mask.shape
    size = (shape[0], shape[1])
    height = ndimage.gaussian_filter(specimen.height, batch.rim, mode="nearest")
    height += _scratches(rng, size, batch.scratches)
    slope_y, slope_x = np.gradient(height)
    detector = rng.normal(-0.6, 0.35)
    picture = specimen.tone - _stains(rng, size, batch.stains)
    picture += batch.edge * (np.sqrt(1.0 + slope_y**2 + slope_x**2) - 1.0)
    picture += batch.relief * (slope_x * np.cos(detector) + slope_y * np.sin(detector))
    if batch.charging:
        # A poor conductor stays charged for some pixels after the beam has passed: a tail in scan direction.
        charged = (specimen.mask == 3).astype(float)
        decay = 0.93
        tail = signal.lfilter([1.0 - decay], [1.0, -decay], charged, axis=1)
        picture += batch.charging * (ndimage.gaussian_filter(charged, 4.0, mode="nearest") - 1.6 * tail)
    picture = ndimage.gaussian_filter(picture, batch.blur, mode="nearest")
    gain = 1.0 + rng.normal(0, 0.07)
    picture = 0.5 + gain * (picture - 0.5) + rng.normal(0, 0.025)
    picture *= 1.0 + batch.shading * _shading(rng, size)
    grain = noise(rng, size, batch.noise_length, 1.3)
    picture += batch.noise * grain * np.sqrt(np.clip(picture, 0.05, 1.0) / 0.5)
    picture += 0.35 * batch.noise * rng.standard_normal(size)
    picture += batch.line_noise * rng.standard_normal((size[0], 1))
    grey: NDArray[np.uint8] = np.rint(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)
    return grey

"""One synthetic micrograph as a function of (family, seed, index)."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from pscl_hpc.archive.synthesis import grains, particles, precipitates
from pscl_hpc.archive.synthesis.exposure import Batch, expose, micrometres_per_pixel
from pscl_hpc.archive.synthesis.fields import Labels, generator
from pscl_hpc.errors import UserError, did_you_mean

_MODULES: dict[str, ModuleType] = {"grains": grains, "precipitates": precipitates, "particles": particles}

FAMILIES: tuple[str, ...] = tuple(_MODULES)
"""Names of the families, in the order of the archive."""
IMAGES_PER_SPECIMEN = 2
MIN_SIZE = 32


@dataclass(frozen=True)
class Micrograph:
    """A synthetic micrograph with its exact mask.

    ``image`` and ``mask`` are uint8 (h, w); the mask has indices of ``classes``, of which the last is rare.
    """

    image: NDArray[np.uint8]
    mask: Labels
    production_batch: str
    specimen: str
    um_per_pixel: float
    magnification: float
    alloy: str
    classes: tuple[str, ...]


def _module(family: str) -> ModuleType:
    if family not in _MODULES:
        raise UserError(f"unknown synthetic family '{family}'{did_you_mean(family, FAMILIES)}")
    return _MODULES[family]


def collection_name(family: str) -> str:
    """Name of the family's collection (dataset) in an archive."""
    _module(family)
    return f"synthetic_{family}"


def class_names(family: str) -> tuple[str, ...]:
    """The family's four classes: matrix, two common phases, one rare phase."""
    names: tuple[str, ...] = _module(family).CLASSES
    return names


def production_batches(family: str) -> tuple[str, ...]:
    """Names of the family's production batches."""
    return tuple(batch.name for batch in _module(family).BATCHES)


def batch_of(family: str, specimen: int) -> Batch:
    """The production batch of a specimen; the batches take turns."""
    batches: tuple[Batch, ...] = _module(family).BATCHES
    return batches[specimen % len(batches)]


def synthesise(family: str, *, seed: int, index: int, size: tuple[int, int] = (256, 256)) -> Micrograph:
    """Make micrograph number ``index`` of a family, a pure function of the arguments.

    Images 2k and 2k + 1 are two fields of view of specimen k. Specimens belong to the six production batches in turn,
    which differ in contrast, scale, blur, noise and shading.

    Args:
        family: one of :data:`FAMILIES`.
        seed: non-negative; another seed gives other specimens of the same production batches.
        index: non-negative.
        size: (height, width) in pixels, each at least 32. The size of features in pixels does not depend on it.

    Raises:
        UserError: unknown family, a size below 32, or a negative seed or index.
    """
    module = _module(family)
    if min(size) < MIN_SIZE:
        raise UserError(
            f"the size {size[0]} x {size[1]} of synthetic images is too small; use at least {MIN_SIZE} pixels a side"
        )
    if seed < 0 or index < 0:
        raise UserError(f"the seed {seed} and the index {index} of synthetic images must be 0 or more")
    specimen = index // IMAGES_PER_SPECIMEN
    batch = batch_of(family, specimen)
    number = FAMILIES.index(family)
    style = generator(seed, number, 0, specimen)
    rng = generator(seed, number, 1, index)
    field = module.specimen(style, rng, size, batch)
    return Micrograph(
        image=expose(rng, field, batch),
        mask=field.mask,
        production_batch=batch.name,
        specimen=f"{family}-{specimen:04d}",
        um_per_pixel=micrometres_per_pixel(batch.magnification),
        magnification=batch.magnification,
        alloy=module.ALLOY,
        classes=module.CLASSES,
    )

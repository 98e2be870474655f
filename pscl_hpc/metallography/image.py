"""The measurements of one label map: fractions of all classes, particles of phases, grains between boundaries."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.metallography.grains import Grains, find_grains
from pscl_hpc.metallography.lines import LineCount, count_changes
from pscl_hpc.metallography.particles import Particles, find_particles
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.metrics import ConfusionMatrix

SMALLEST = 10
"""Default smallest particle in pixels; the shape of a smaller one is not resolved."""


@dataclass(frozen=True)
class Rules:
    """What is measured."""

    classes: ClassList
    phases: tuple[int, ...]
    """Classes whose particles are measured."""
    boundary: int | None = None
    """The class that is the grain boundary."""
    smallest: int = SMALLEST
    """Smallest particle or grain in pixels."""

    @classmethod
    def of(
        cls, classes: ClassList, *, phases: tuple[str, ...] = (), boundary: str = "", smallest: int = SMALLEST
    ) -> Rules:
        """The rules for class names; by default particles of every class but the background and the boundary.

        Raises:
            UserError: there is no such class, or ``smallest`` is not positive.
        """
        if smallest < 1:
            raise UserError(f"--smallest is {smallest}; give a number of pixels of at least 1")
        edge = _index(classes, boundary, "--boundary") if boundary else None
        chosen = tuple(_index(classes, name, "--phase") for name in phases) or classes.foreground
        return cls(classes, tuple(index for index in chosen if index != edge), edge, smallest)


@dataclass(frozen=True)
class Phase:
    """The particles of a phase in one image, in pixels."""

    particles: Particles
    chords: LineCount
    """Changes into and out of the phase on test lines: two for each chord."""


@dataclass(frozen=True)
class ImageMeasurement:
    """One image, in pixels."""

    name: str
    height: int
    width: int
    um_per_pixel: float | None
    pixels: npt.NDArray[np.int64]
    """(classes,) pixels of each class; ignored classes and pixels that are not annotated are not counted."""
    area: int
    """Annotated pixels."""
    phases: dict[int, Phase]
    grains: Grains | None = None
    confusion: npt.NDArray[np.int64] | None = None
    """(true class, predicted class) pixels, if there is a mask of the same image to compare with."""
    files: dict[str, str] = field(default_factory=dict)
    """Pictures of the image: ``labels``, ``overlay`` and ``confidence``."""
    mean_confidence: float | None = None

    def fractions(self) -> npt.NDArray[np.float64]:
        """(classes,) share of each class in the known pixels; NaN if there are none."""
        return shares(self.pixels)


def shares(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Pixel counts as shares of their sum; NaN if it is 0."""
    total = pixels.sum()
    return pixels / total if total else np.full(pixels.shape, np.nan)


def count_pixels(labels: npt.NDArray[np.uint8], classes: ClassList) -> npt.NDArray[np.int64]:
    """(classes,) pixels of each class that is not ignored."""
    kept = classes.without_ignored(labels)
    return np.bincount(kept.reshape(-1), minlength=256)[: classes.count].astype(np.int64)


def measure_image(
    name: str,
    labels: npt.NDArray[np.uint8],
    rules: Rules,
    *,
    um_per_pixel: float | None = None,
    mask: npt.NDArray[np.uint8] | None = None,
    files: dict[str, str] | None = None,
    mean_confidence: float | None = None,
) -> ImageMeasurement:
    """Measure a label map.

    Args:
        name: Of the image.
        labels: (h, w) class indices, 255 where not annotated.
        rules: What is measured.
        um_per_pixel: Scale of the image, if known.
        mask: (h, w) annotation of the same image to compare with.
        files, mean_confidence: See :class:`ImageMeasurement`.
    """
    matrix = ConfusionMatrix(rules.classes)
    if mask is not None:
        matrix.update(labels, mask)
    kept = rules.classes.without_ignored(labels)
    known = kept != 255
    phases = {}
    for index in rules.phases:
        phase = kept == index
        phases[index] = Phase(
            find_particles(phase, known, smallest=rules.smallest), count_changes(phase, known)
        )
    return ImageMeasurement(
        name,
        labels.shape[0],
        labels.shape[1],
        um_per_pixel,
        count_pixels(labels, rules.classes),
        int(known.sum()),
        phases,
        find_grains(kept == rules.boundary, known, smallest=rules.smallest)
        if rules.boundary is not None
        else None,
        matrix.counts if mask is not None else None,
        files or {},
        mean_confidence,
    )


def _index(classes: ClassList, name: str, option: str) -> int:
    known = {classes.names[index]: index for index in classes.kept}
    if name not in known:
        raise UserError(f"{option} '{name}' is not a class that is segmented{did_you_mean(name, known)}")
    return known[name]

"""``measurements.json``: all results of a set of images as plain values, written and read."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pscl_hpc.files import read_checked, write_json

MEASUREMENTS_FILE = "measurements.json"
MEASUREMENTS = "measurements"
"""The folder of measurements in that of a run or of ``segment``."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Result(_Part):
    """One result of the set, with its 95% interval."""

    phase: str
    quantity: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    images: int
    """Images that the value is based on."""


class PhaseResult(_Part):
    """One phase, or the grains, in one image."""

    fraction: float | None = None
    corrected_fraction: float | None = None
    fraction_in_mask: float | None = None
    fraction_in_same_pixels: float | None = None
    """Predicted, in the pixels that are annotated in the mask."""
    particles_inside: int | None = None
    particles_cut: int | None = None
    regions_too_small: int | None = None
    particles_per_area: float | None = None
    mean_diameter: float | None = None
    mean_area: float | None = None
    mean_aspect_ratio: float | None = None
    mean_chord_length: float | None = None
    mean_free_path: float | None = None
    grain_size_planimetric: float | None = None
    """ASTM grain size number G; None without scale."""
    grain_size_intercept: float | None = None


class ImageResult(_Part):
    """One image."""

    name: str
    height: int
    width: int
    um_per_pixel: float | None
    unit: str
    """Of the lengths of this image."""
    mean_confidence: float | None
    annotated: bool
    """Whether the model was trained on its mask."""
    phases: dict[str, PhaseResult]
    files: dict[str, str]
    """Pictures, relative to the folder: ``labels``, ``overlay``, ``confidence``."""


class Histogram(_Part):
    """Distribution of the equivalent diameters of a phase."""

    phase: str
    unit: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    """Share of the particles in each bin."""


class CorrectionRecord(_Part):
    """Where the confusion comes from."""

    split: str
    images: int
    matrix: tuple[tuple[float, ...], ...]
    """(true class, predicted class) in the order of the classes: the share of a predicted class that is annotated as the
    true one."""


class Measurements(_Part):
    """The content of ``measurements.json``."""

    source: str
    """The run, or the archive whose masks were measured."""
    masks: bool
    """Whether masks were measured, not predictions."""
    classes: tuple[str, ...]
    background: int
    ignore_classes: tuple[int, ...]
    phases: tuple[str, ...]
    """Classes whose particles were measured."""
    boundary: str
    smallest: int
    unit: str
    settings: dict[str, str]
    """How the images were read and segmented."""
    commands: tuple[str, ...] = ()
    """Single commands that give the same."""
    references: tuple[str, ...]
    """Annotated images that the model was trained on."""
    correction: CorrectionRecord | None
    results: tuple[Result, ...]
    images: tuple[ImageResult, ...]
    histograms: tuple[Histogram, ...]
    warnings: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    """File and reason."""

    def find(self, phase: str, quantity: str) -> Result | None:
        """A result of the set; None if it was not measured."""
        return next((row for row in self.results if (row.phase, row.quantity) == (phase, quantity)), None)

    def lines(self) -> list[str]:
        """The phase fractions as lines of text."""
        found = []
        for name in self.kept:
            for quantity in (
                "fraction",
                "corrected fraction",
                "fraction in the masks",
                "fraction in the same pixels",
                "error of the fraction",
            ):
                row = self.find(name, quantity)
                if row is None or row.value is None:
                    continue
                error = quantity.startswith("error")
                sign, unit = ("+", "percentage points") if error else ("", "%")
                interval = ""
                if row.low is not None and row.high is not None:
                    interval = f" (95% interval {100 * row.low:{sign}.2f} to {100 * row.high:{sign}.2f})"
                what = quantity
                if quantity == "fraction in the masks":
                    what = (
                        f"{quantity} of {row.images} images"
                        if row.images > 1
                        else "fraction in the mask of 1 image"
                    )
                elif quantity == "fraction in the same pixels":
                    what = "fraction predicted in the same pixels"
                found.append(f"{100 * row.value:{sign}7.2f} {unit}  {name}: {what}{interval}")
        return found

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the classes that are not ignored."""
        return tuple(name for index, name in enumerate(self.classes) if index not in self.ignore_classes)


def write_measurements(folder: Path, record: Measurements) -> None:
    """Write ``measurements.json``."""
    write_json(folder / MEASUREMENTS_FILE, record.model_dump(mode="json"))


def read_measurements(folder: Path) -> Measurements:
    """Read ``measurements.json``; UserError if it cannot be read."""
    return read_checked(folder / MEASUREMENTS_FILE, Measurements, "run 'pscl-hpc measure' again")

"""The page of measurements: what was found, pictures, numbers, what to annotate next, rules, settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.options import IngestOptions
from pscl_hpc.archive.single_file import temporary_archive
from pscl_hpc.errors import UserError
from pscl_hpc.metallography.correction import LIMITS
from pscl_hpc.metallography.record import ImageResult, Measurements
from pscl_hpc.report.curves import Chart
from pscl_hpc.report.measure_charts import FractionRow, diameters, fractions
from pscl_hpc.report.measure_text import (
    MU,
    confusion_table,
    fraction_table,
    image_table,
    main_fraction,
    particle_table,
    sentences,
    shown_fraction,
    tiles,
    title,
    unit_text,
)
from pscl_hpc.report.pictures import grey, photo_uri
from pscl_hpc.segmentation.palette import class_colours, hex_colour

MOST_IMAGES = 9
"""Images whose pictures are shown."""
NEXT = 3
"""Images that are proposed to be annotated next."""
LARGE_SIDE, SIDE = 760, 420
"""Longest side of pictures in pixels."""
_MOST_PIXELS = 1 << 26
"""Of an image file that is read again for the page."""
_LARGEST_BAR = 0.3
"""Longest scale bar as a share of the width."""


@dataclass(frozen=True)
class ScaleBar:
    """A bar in a picture."""

    label: str
    percent: float
    """Of the width of the picture."""


@dataclass(frozen=True)
class Picture:
    """One image: the micrograph where it can be read, and its pictures as data URIs."""

    name: str
    width: int
    height: int
    overlay: str
    micrograph: str
    confidence: str
    bar: ScaleBar | None
    note: str


@dataclass(frozen=True)
class PhaseStyle:
    """A class in the colour of the pictures."""

    name: str
    colour: str


def measure_context(record: Measurements, folder: Path) -> dict[str, Any]:
    """Values of the template ``measure.html.j2``.

    Args:
        record: The measurements.
        folder: Their folder, where the pictures are.
    """
    styles = phase_styles(record)
    shown = representative(record.images)
    archive = _archive(record)
    return {
        "record": record,
        "folder": folder,
        "title": title(record),
        "sentences": sentences(record),
        "tiles": tiles(record),
        "styles": [style for style in styles.values() if style.name != record.classes[record.background]],
        "pictures": [
            picture
            for place, image in enumerate(shown)
            if (picture := _picture(image, folder, archive, LARGE_SIDE if place == 0 else SIDE))
        ],
        "next_images": [
            picture
            for image in least_sure(record.images)
            if (picture := _picture(image, folder, archive, SIDE, confidence=True))
        ],
        "fraction_table": fraction_table(record),
        "particle_table": particle_table(record),
        "image_table": image_table(record),
        "charts": _charts(record, styles),
        "confusion": confusion_table(record),
        "limits": LIMITS,
        "settings": {key: value for key, value in record.settings.items() if value},
    }


def phase_styles(record: Measurements) -> dict[str, PhaseStyle]:
    """The classes that are not ignored, by name."""
    colours = class_colours(len(record.classes), record.background)
    return {
        name: PhaseStyle(name, hex_colour(colours[record.classes.index(name)])) for name in record.kept
    }  # fmt: skip


def representative(images: Sequence[ImageResult], most: int = MOST_IMAGES) -> list[ImageResult]:
    """At most ``most`` images with pictures, spread evenly over the list; images trained on come last."""
    usable = [image for image in images if image.files.get("overlay")]
    usable.sort(key=lambda image: image.annotated)
    if len(usable) <= most:
        return usable
    return [usable[round(place)] for place in np.linspace(0, len(usable) - 1, most)]


def least_sure(images: Sequence[ImageResult]) -> list[ImageResult]:
    """The images with the lowest mean confidence that the model was not trained on; those without a mask come first."""
    known = [
        image
        for image in images
        if image.mean_confidence is not None and not image.annotated and image.files.get("confidence")
    ]
    return sorted(known, key=lambda image: (has_mask(image), image.mean_confidence or 0.0, image.name))[:NEXT]


def has_mask(image: ImageResult) -> bool:
    """Whether the archive has a mask of the image."""
    return any(phase.fraction_in_mask is not None for phase in image.phases.values())


def scale_bar(width: int, um_per_pixel: float | None) -> ScaleBar | None:
    """The longest bar of 1, 2 or 5 times a power of ten that is at most 30% of the width; None without scale."""
    if not um_per_pixel:
        return None
    longest = _LARGEST_BAR * width * um_per_pixel
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9))
    if length >= 1000:
        label = f"{length / 1000:g} mm"
    elif length < 1:
        label = f"{length * 1000:g} nm"
    else:
        label = f"{length:g} {MU}"
    return ScaleBar(label, 100 * length / (width * um_per_pixel))


def _archive(record: Measurements) -> Archive | None:
    path = record.settings.get("archive", "")
    try:
        return Archive(path) if path and Path(path).exists() else None
    except UserError:
        return None


def _picture(
    image: ImageResult, folder: Path, archive: Archive | None, side: int, *, confidence: bool = False
) -> Picture | None:
    """The pictures of an image; None where they cannot be read any more."""
    overlay = _read(folder / image.files["overlay"], side)
    if not overlay:
        return None
    note = "the model was trained on this image" if image.annotated else ""
    if image.mean_confidence is not None and confidence:
        note = f"mean confidence {100 * image.mean_confidence:.1f} %"
        note += ", has a mask already" if has_mask(image) else ""
    return Picture(
        image.name,
        image.width,
        image.height,
        overlay,
        _micrograph(image, archive, folder, side) if side == LARGE_SIDE else "",
        _read(folder / image.files["confidence"], side) if confidence else "",
        scale_bar(image.width, image.um_per_pixel),
        note,
    )


def _micrograph(image: ImageResult, archive: Archive | None, folder: Path, side: int) -> str:
    """The image without the phases, from the archive or its file; empty where it cannot be read any more."""
    try:
        if archive is not None:
            return photo_uri(grey(archive.read_unit(archive.find(image.name).index)), side)
        if not Path(image.name).is_file() or image.height * image.width > _MOST_PIXELS:
            return ""
        with temporary_archive(Path(image.name), folder, IngestOptions()) as (own, pages):
            return photo_uri(grey(own.read_unit(pages[0].index)), side)
    except (UserError, Unreadable, OSError):
        return ""


def _read(path: Path, side: int) -> str:
    try:
        with Image.open(path) as picture:
            return photo_uri(np.asarray(picture), side)
    except (OSError, ValueError):
        return ""


def _charts(record: Measurements, styles: dict[str, PhaseStyle]) -> list[Chart]:
    rows = []
    for name in record.kept:
        result = main_fraction(record, name)
        values = [value for image in record.images if (value := shown_fraction(image, name)) is not None]
        if result is not None and result.value is not None:
            rows.append(
                FractionRow(name, styles[name].colour, tuple(values), result.value, result.low, result.high)
            )
    charts = [
        Chart(
            "Fraction of each phase",
            "Small dots: images. Large dot: their mean. Line: its 95% interval.",
            (),
            fractions("fractions", rows, title="Fraction of each phase in each image"),
        )
    ]
    for place, histogram in enumerate(record.histograms):
        colour = styles[histogram.phase].colour if histogram.phase in styles else "#7a7f87"
        charts.append(
            Chart(
                f"Diameter of {histogram.phase}",
                "Particles cut by the edge are left out, and the others weighted for it.",
                (),
                diameters(f"diameters{place}", histogram, colour, unit_text(histogram.unit)),
            )
        )
    return charts

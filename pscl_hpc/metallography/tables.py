"""Measurements as plain values of a record, and as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pscl_hpc.files import replacing
from pscl_hpc.metallography.correction import Correction
from pscl_hpc.metallography.image import ImageMeasurement, Rules, shares
from pscl_hpc.metallography.particles import Particles
from pscl_hpc.metallography.record import CorrectionRecord, Histogram, Measurements, PhaseResult, Result
from pscl_hpc.metallography.summary import GRAINS, MICROMETRE, PIXEL, Summary, pooled_diameters, summarise

RESULTS_FILE, IMAGES_FILE, PARTICLES_FILE = "results.csv", "images.csv", "particles.csv"
BINS = 24
_OF_IMAGE = {
    "particles per area": "particles_per_area",
    "grains per area (planimetric)": "particles_per_area",
    "mean diameter": "mean_diameter",
    "mean area": "mean_area",
    "mean aspect ratio": "mean_aspect_ratio",
    "mean chord length": "mean_chord_length",
    "mean lineal intercept": "mean_chord_length",
    "mean free path between particles": "mean_free_path",
    "ASTM grain size G (planimetric)": "grain_size_planimetric",
    "ASTM grain size G (intercept)": "grain_size_intercept",
}
"""Quantity of a summary -> field of :class:`PhaseResult`."""


def results_of(summary: Summary) -> tuple[Result, ...]:
    """The rows of a summary."""
    return tuple(
        Result(
            phase=row.phase,
            quantity=row.quantity,
            unit=row.unit,
            value=row.estimate.value,
            low=row.estimate.low,
            high=row.estimate.high,
            images=row.estimate.images,
        )
        for row in summary.rows
    )


def phases_of(image: ImageMeasurement, rules: Rules, correction: Correction | None) -> dict[str, PhaseResult]:
    """The results of one image by phase, lengths in micrometres if its scale is known."""
    alone = summarise([image], rules)
    found: dict[str, dict[str, Any]] = {}
    known = bool(image.pixels.sum())
    corrected = correction.apply(image.fractions()) if correction is not None and known else None
    for index in rules.classes.kept:
        row: dict[str, Any] = {"fraction": float(image.fractions()[index]) if known else None}
        if corrected is not None:
            row["corrected_fraction"] = float(corrected[index])
        if image.confusion is not None and image.confusion.sum():
            row["fraction_in_mask"] = float(shares(image.confusion.sum(axis=1))[index])
            row["fraction_in_same_pixels"] = float(shares(image.confusion.sum(axis=0))[index])
        found[rules.classes.names[index]] = row
    for name, particles in _regions(image, rules):
        found.setdefault(name, {}).update(
            particles_inside=particles.inside,
            particles_cut=particles.cut,
            regions_too_small=particles.small,
        )
    for one in alone.rows:
        if one.quantity in _OF_IMAGE:
            found[one.phase][_OF_IMAGE[one.quantity]] = one.estimate.value
    return {name: PhaseResult(**values) for name, values in found.items()}


def correction_record(correction: Correction | None) -> CorrectionRecord | None:
    """The correction for the record."""
    if correction is None:
        return None
    matrix = tuple(tuple(map(float, row)) for row in correction.matrix())
    return CorrectionRecord(split=correction.split, images=len(correction.counts), matrix=matrix)


def histograms_of(images: Sequence[ImageMeasurement], rules: Rules, unit: str) -> tuple[Histogram, ...]:
    """Distribution of the diameters of each phase and of the grains."""
    by_name: dict[str, list[tuple[ImageMeasurement, Particles]]] = {}
    for image in images:
        for name, particles in _regions(image, rules):
            by_name.setdefault(name, []).append((image, particles))
    found = []
    for name, pairs in by_name.items():
        values, weights = pooled_diameters([image for image, _ in pairs], [one for _, one in pairs], unit)
        if len(values) > 1:
            counts, edges = np.histogram(values, bins=BINS, range=(0.0, float(values.max())), weights=weights)
            found.append(
                Histogram(
                    phase=name,
                    unit=unit,
                    edges=tuple(map(float, edges)),
                    shares=tuple(map(float, counts / counts.sum())),
                )
            )
    return tuple(found)


def write_tables(
    folder: Path, record: Measurements, images: Sequence[ImageMeasurement], rules: Rules
) -> None:
    """Write ``results.csv``, ``images.csv`` and ``particles.csv``."""
    _write(folder / RESULTS_FILE, list(Result.model_fields), (row.model_dump() for row in record.results))
    fields = ["image", "phase", *PhaseResult.model_fields, "unit", "um_per_pixel", "mean_confidence"]
    _write(
        folder / IMAGES_FILE,
        fields,
        (
            {
                "image": image.name,
                "phase": name,
                **phase.model_dump(),
                "unit": image.unit,
                "um_per_pixel": image.um_per_pixel,
                "mean_confidence": image.mean_confidence,
            }
            for image in record.images
            for name, phase in image.phases.items()
        ),
    )
    names = [
        "image",
        "phase",
        "y_px",
        "x_px",
        "area",
        "diameter",
        "aspect_ratio",
        "nearest_neighbour",
        "unit",
    ]
    rows = (row for image in images for row in _particle_rows(image, rules))
    _write(folder / PARTICLES_FILE, names, rows)


def _particle_rows(image: ImageMeasurement, rules: Rules) -> Iterable[dict[str, Any]]:
    scale = image.um_per_pixel or 1.0
    unit = MICROMETRE if image.um_per_pixel else PIXEL
    for name, found in _regions(image, rules):
        for place in range(found.inside):
            neighbour = found.neighbour[place] * scale
            yield {
                "image": image.name,
                "phase": name,
                "y_px": f"{found.y[place]:.2f}",
                "x_px": f"{found.x[place]:.2f}",
                "area": f"{found.area[place] * scale**2:.6g}",
                "diameter": f"{found.diameter[place] * scale:.6g}",
                "aspect_ratio": f"{found.aspect[place]:.4g}",
                "nearest_neighbour": f"{neighbour:.6g}" if np.isfinite(neighbour) else "",
                "unit": unit,
            }


def _regions(image: ImageMeasurement, rules: Rules) -> Iterable[tuple[str, Particles]]:
    for index, phase in image.phases.items():
        yield rules.classes.names[index], phase.particles
    if image.grains is not None:
        yield GRAINS, image.grains.particles


def _write(path: Path, names: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)

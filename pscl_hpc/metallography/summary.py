"""The measurements of a set of images: values with intervals from image to image."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pscl_hpc.metallography.correction import Correction
from pscl_hpc.metallography.grains import number_by_area, number_by_intercept
from pscl_hpc.metallography.image import ImageMeasurement, Rules, shares
from pscl_hpc.metallography.lines import scaled, total
from pscl_hpc.metallography.particles import Particles, weighted_percentiles
from pscl_hpc.metallography.statistics import Estimate, jackknife, mean_interval

ERROR, ABSOLUTE_ERROR = "error of the fraction", "absolute error of the fraction"
"""Predicted minus in the mask, as a share of the area: mean over the images with its sign, and without."""
GRAINS = "grains"
"""In the place of a phase name, for grains."""
MICROMETRE, PIXEL = "um", "px"
PERCENTILES = (0.1, 0.5, 0.9)
_PARTICLES = (
    ("mean diameter", "diameter", 1),
    ("mean area", "area", 2),
    ("mean aspect ratio", "aspect", 0),
    ("mean distance to the nearest neighbour", "neighbour", 1),
)
"""Quantity, column of :class:`Particles`, power of the unit of length."""


@dataclass(frozen=True)
class Row:
    """One result of the set."""

    phase: str
    quantity: str
    unit: str
    """Empty for numbers without unit."""
    estimate: Estimate


@dataclass(frozen=True)
class Summary:
    """All results of a set of images."""

    unit: str
    """Of lengths: ``um`` if the scale of every image is known, else ``px``."""
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    def find(self, phase: str, quantity: str) -> Estimate:
        """One estimate; KeyError if it was not measured."""
        for row in self.rows:
            if (row.phase, row.quantity) == (phase, quantity):
                return row.estimate
        raise KeyError((phase, quantity))


def summarise(
    images: Sequence[ImageMeasurement],
    rules: Rules,
    correction: Correction | None = None,
    *,
    references: Collection[str] = (),
) -> Summary:
    """The results of a set of images.

    Args:
        images: At least one.
        rules: What was measured.
        correction: Of phase fractions, if the confusion of the model is known.
        references: Names of the images that the model was trained on; their masks say nothing about its errors.
    """
    unit, warnings = length_unit(images)
    rows = []
    for index in rules.classes.kept:
        rows += _fractions(images, rules, index, correction)
        rows += _compared([image for image in images if image.name not in references], rules, index)
    for index in rules.phases:
        name = rules.classes.names[index]
        rows += _particle_rows(name, images, [image.phases[index].particles for image in images], unit)
        rows += _spacing(name, index, images, unit)
        warnings += _too_small(name, [image.phases[index].particles for image in images], rules)
    if rules.boundary is not None:
        rows += _grain_rows(images, unit)
    return Summary(unit, tuple(rows), tuple(warnings))


def _too_small(name: str, found: Sequence[Particles], rules: Rules) -> list[str]:
    small, counted = sum(one.small for one in found), sum(one.inside + one.cut for one in found)
    if small <= counted:
        return []
    return [
        f"{name}: {small} regions have fewer than {rules.smallest} pixels and are not counted, {counted} are; they are "
        "noise of the segmentation or too small for this magnification; --smallest sets the limit."
    ]


def length_unit(images: Sequence[ImageMeasurement]) -> tuple[str, list[str]]:
    """The unit of lengths, and warnings about scales that are unknown or differ."""
    scales = [image.um_per_pixel for image in images]
    known = [scale for scale in scales if scale]
    if len(known) == len(scales):
        return MICROMETRE, []
    if not known:
        return PIXEL, ["The scale of the images is not known: lengths are in pixels."]
    first = next(image.name for image in images if not image.um_per_pixel)
    return PIXEL, [
        f"The scale of {len(scales) - len(known)} of {len(scales)} images is not known ({first}): lengths of the set are "
        "in pixels, and mix magnifications if these differ."
    ]


def length_scale(image: ImageMeasurement, unit: str) -> float:
    """Length of a pixel in ``unit``."""
    return image.um_per_pixel or 1.0 if unit == MICROMETRE else 1.0


def _fractions(
    images: Sequence[ImageMeasurement], rules: Rules, index: int, correction: Correction | None
) -> list[Row]:
    name = rules.classes.names[index]
    counted = [image for image in images if image.pixels.sum()]
    rows = [
        Row(
            name,
            "fraction",
            "",
            mean_interval([float(image.fractions()[index]) for image in counted], limits=(0, 1)),
        )
    ]
    if correction is not None:
        corrected = correction.estimate([image.fractions() for image in counted], index)
        rows.append(Row(name, "corrected fraction", "", corrected))
    return rows


def _compared(images: Sequence[ImageMeasurement], rules: Rules, index: int) -> list[Row]:
    """The fraction in the masks, the predicted one of the same pixels, and the errors; nothing without masks."""
    name = rules.classes.names[index]
    compared = [image.confusion for image in images if image.confusion is not None and image.confusion.sum()]
    if not compared:
        return []
    truth = [float(shares(counts.sum(axis=1))[index]) for counts in compared]
    predicted = [float(shares(counts.sum(axis=0))[index]) for counts in compared]
    errors = [after - before for after, before in zip(predicted, truth, strict=True)]
    return [
        Row(name, "fraction in the masks", "", mean_interval(truth, limits=(0, 1))),
        Row(name, "fraction in the same pixels", "", mean_interval(predicted, limits=(0, 1))),
        Row(name, ERROR, "", mean_interval(errors, limits=(-1, 1))),
        Row(name, ABSOLUTE_ERROR, "", mean_interval([abs(error) for error in errors], limits=(0, 1))),
    ]


def _particle_rows(
    name: str, images: Sequence[ImageMeasurement], found: Sequence[Particles], unit: str
) -> list[Row]:
    pairs = list(zip(images, found, strict=True))
    rows = [
        Row(name, "particles inside", "", Estimate(sum(one.inside for one in found), images=len(found))),
        Row(name, "particles cut by the edge", "", Estimate(sum(one.cut for one in found), images=len(found))),
        Row(name, "regions too small", "", Estimate(sum(one.small for one in found), images=len(found))),
        Row(
            name, "particles per area", f"1/{unit}2", jackknife(pairs, lambda some: _density(some, unit))
        ),
    ]  # fmt: skip
    for quantity, column, power in _PARTICLES:
        least = 1.0 if column == "aspect" else 0.0
        estimate = jackknife(pairs, _mean_of(column, power, unit), limits=(least, math.inf))
        rows.append(Row(name, quantity, {0: "", 1: unit, 2: f"{unit}2"}[power], estimate))
    values, weights = _pooled(pairs, "diameter", 1, unit)
    if len(values):
        for share, value in zip(PERCENTILES, weighted_percentiles(values, weights, PERCENTILES), strict=True):
            rows.append(Row(name, f"diameter D{100 * share:.0f}", unit, Estimate(value, images=len(found))))
    return rows


Pair = tuple[ImageMeasurement, Particles]


def _density(pairs: Sequence[Pair], unit: str) -> float | None:
    """Particles per area, with the weights of the particles inside."""
    area = sum(image.area * length_scale(image, unit) ** 2 for image, _ in pairs)
    return sum(float(one.weight.sum()) * image.area for image, one in pairs) / area if area else None


def _mean_of(column: str, power: int, unit: str) -> Callable[[Sequence[Pair]], float | None]:
    def mean(pairs: Sequence[Pair]) -> float | None:
        values, weights = _pooled(pairs, column, power, unit)
        return float(np.average(values, weights=weights)) if len(values) else None

    return mean


def _pooled(
    pairs: Sequence[Pair], column: str, power: int, unit: str
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Values of all particles in ``unit``, and how many particles of their image each stands for."""
    values = [getattr(one, column) * length_scale(image, unit) ** power for image, one in pairs]
    weights = [one.weight * image.area for image, one in pairs]
    joined, weight = np.concatenate(values), np.concatenate(weights)
    known = np.isfinite(joined)
    return joined[known], weight[known]


def pooled_diameters(
    images: Sequence[ImageMeasurement], found: Sequence[Particles], unit: str
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Diameters of all particles in ``unit`` and their weights, for a histogram."""
    return _pooled(list(zip(images, found, strict=True)), "diameter", 1, unit)


def _spacing(name: str, index: int, images: Sequence[ImageMeasurement], unit: str) -> list[Row]:
    """Mean chord V / N and mean free path (1 - V) / N, with N chords per length of line (Underwood 1970)."""

    def chords(some: Sequence[ImageMeasurement]) -> tuple[float, float] | None:
        counted = [image for image in some if image.area]
        if not counted:
            return None
        lines = total(
            [scaled(image.phases[index].chords, length_scale(image, unit)) for image in counted]
        )  # fmt: skip
        number = (lines.per_pixel or 0.0) / 2
        areas = [length_scale(image, unit) ** 2 for image in counted]
        inside = sum(float(image.pixels[index]) * area for image, area in zip(counted, areas, strict=True))
        share = inside / sum(image.area * area for image, area in zip(counted, areas, strict=True))
        return (share / number, (1 - share) / number) if number else None

    def part(place: int) -> Callable[[Sequence[ImageMeasurement]], float | None]:
        def value(some: Sequence[ImageMeasurement]) -> float | None:
            found = chords(some)
            return found[place] if found else None

        return value

    return [
        Row(name, "mean chord length", unit, jackknife(images, part(0))),
        Row(name, "mean free path between particles", unit, jackknife(images, part(1))),
    ]


def _grain_rows(images: Sequence[ImageMeasurement], unit: str) -> list[Row]:
    measured = [image for image in images if image.grains is not None and image.grains.pixels]

    def density(some: Sequence[ImageMeasurement]) -> float | None:
        number = sum(image.grains.planimetric for image in some if image.grains)
        area = sum(image.grains.pixels * length_scale(image, unit) ** 2 for image in some if image.grains)
        return number / area if number else None

    def intercept(some: Sequence[ImageMeasurement]) -> float | None:
        counts = [scaled(image.grains.crossings, length_scale(image, unit)) for image in some if image.grains]
        crossings = total(counts).per_pixel
        return 1 / crossings if crossings else None

    def number_of(
        statistic: Callable[[Sequence[ImageMeasurement]], float | None], convert: Callable[[float], float]
    ) -> Estimate:
        def value(some: Sequence[ImageMeasurement]) -> float | None:
            found = statistic(some)
            return convert(found) if found else None

        return jackknife(measured, value, limits=(-math.inf, math.inf))

    if not measured:
        return []
    rows = [
        Row(GRAINS, "grains per area (planimetric)", f"1/{unit}2", jackknife(measured, density)),
        Row(GRAINS, "mean lineal intercept", unit, jackknife(measured, intercept)),
    ]
    if unit == MICROMETRE:
        by_area = number_of(density, lambda per_um2: number_by_area(per_um2 * 1e6))
        by_line = number_of(intercept, lambda um: number_by_intercept(um * 1e-3))
        rows += [
            Row(GRAINS, "ASTM grain size G (planimetric)", "", by_area),
            Row(GRAINS, "ASTM grain size G (intercept)", "", by_line),
        ]
    found = [image.grains.particles for image in measured if image.grains]
    rows += [
        Row(row.phase, row.quantity.replace("particles", "grains"), row.unit, row.estimate)
        for row in _particle_rows(GRAINS, measured, found, unit)
        if row.quantity != "particles per area"
    ]
    return rows

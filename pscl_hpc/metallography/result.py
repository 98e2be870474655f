"""The result of a measurement: the summary of its images, as a record and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.files import writing
from pscl_hpc.metallography.correction import Correction
from pscl_hpc.metallography.image import ImageMeasurement, Rules
from pscl_hpc.metallography.record import ImageResult, Measurements, write_measurements
from pscl_hpc.metallography.summary import MICROMETRE, PIXEL, summarise
from pscl_hpc.metallography.tables import (
    correction_record,
    histograms_of,
    phases_of,
    results_of,
    write_tables,
)


@dataclass(frozen=True)
class Measured:
    """The result: the folder, and what was written to it."""

    folder: Path
    record: Measurements


def write_result(
    folder: Path,
    images: Sequence[ImageMeasurement],
    rules: Rules,
    *,
    source: str,
    masks: bool,
    correction: Correction | None,
    references: tuple[str, ...],
    settings: dict[str, str],
    commands: Sequence[str] = (),
    warnings: Sequence[str],
    skipped: Sequence[tuple[str, str]],
) -> Measured:
    """Summarise measured images, and write the record and the tables to a folder.

    Args:
        folder: Made if it does not exist; files of an earlier measurement are replaced.
        images: All images of the set, in pixels.
        rules: What was measured.
        source: The run or the archive.
        masks: Whether masks were measured, not predictions.
        correction: Of the fractions of predictions by the errors of the model; None for no correction.
        references: Names of the images that the model was trained on.
        settings, commands, warnings, skipped: For the record.

    Raises:
        JobError: a file cannot be written.
    """
    summary = summarise(images, rules, correction, references=references)
    record = Measurements(
        source=source,
        masks=masks,
        classes=rules.classes.names,
        background=rules.classes.background,
        ignore_classes=rules.classes.ignored,
        phases=tuple(rules.classes.names[index] for index in rules.phases),
        boundary=rules.classes.names[rules.boundary] if rules.boundary is not None else "",
        smallest=rules.smallest,
        unit=summary.unit,
        settings=settings,
        commands=tuple(commands),
        references=references,
        correction=correction_record(correction),
        results=results_of(summary),
        images=tuple(
            ImageResult(
                name=image.name,
                height=image.height,
                width=image.width,
                um_per_pixel=image.um_per_pixel,
                unit=MICROMETRE if image.um_per_pixel else PIXEL,
                mean_confidence=image.mean_confidence,
                annotated=image.name in references,
                phases=phases_of(image, rules, correction),
                files=image.files,
            )
            for image in images
        ),
        histograms=histograms_of(images, rules, summary.unit),
        warnings=(*warnings, *summary.warnings),
        skipped=tuple(skipped),
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_tables(folder, record, images, rules)
        write_measurements(folder, record)
    return Measured(folder, record)

"""Measuring a set: the predictions of a run for files or archive images, or the masks of an archive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.metallography.correction import Correction
from pscl_hpc.metallography.image import SMALLEST, ImageMeasurement, Rules, measure_image
from pscl_hpc.metallography.record import ImageResult, Measurements, write_measurements
from pscl_hpc.metallography.summary import MICROMETRE, PIXEL, summarise
from pscl_hpc.metallography.tables import (
    correction_record,
    histograms_of,
    phases_of,
    results_of,
    write_tables,
)
from pscl_hpc.progress import Progress
from pscl_hpc.runs import writing
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.data import class_list
from pscl_hpc.segmentation.evaluate import ImagePredictor, SegmentationConfig, open_run, same_name
from pscl_hpc.segmentation.metrics import ConfusionMatrix
from pscl_hpc.segmentation.pictures import read_labels
from pscl_hpc.segmentation.predict import PredictReport, predict

FOLDER = "measurements"
"""Default output folder in a run."""
NO_VALIDATION = "none"


@dataclass(frozen=True)
class Wanted:
    """What is measured, by class names; see :meth:`Rules.of`."""

    phases: tuple[str, ...] = ()
    boundary: str = ""
    smallest: int = SMALLEST
    um_per_pixel: float | None = None
    """Scale of all images; None: as their files or the archive tell."""

    def __post_init__(self) -> None:
        if self.um_per_pixel is not None and not 0 < self.um_per_pixel < float("inf"):
            raise UserError(f"--um-per-pixel is {self.um_per_pixel:g}; give a positive number of micrometres")

    def rules(self, classes: ClassList) -> Rules:
        """The rules for a class list."""
        return Rules.of(classes, phases=self.phases, boundary=self.boundary, smallest=self.smallest)


@dataclass(frozen=True)
class Measured:
    """The result: the folder, and what was written to it."""

    folder: Path
    record: Measurements


def measure(
    run: str | Path,
    images: Sequence[str | Path] = (),
    *,
    wanted: Wanted | None = None,
    out: str | Path | None = None,
    archive: str | Path | None = None,
    splits: Sequence[str] = (),
    validation: str = "",
    commands: Sequence[str] = (),
    notes: Sequence[str] = (),
    skipped: Sequence[tuple[str, str]] = (),
    progress: bool = False,
    **options: Any,
) -> Measured:
    """Segment images with a fine-tuned run and measure them.

    Masks of archive images are compared with the predictions. Phase fractions are corrected by the confusion on
    validation images if the archive of the run has some.

    Args:
        run: A finished fine-tuning run.
        images: Image files and folders, or ids of ``archive``; none: the images of the collection that the run was trained
            on.
        wanted: What is measured.
        out: Output folder, by default ``RUN/measurements``; its files of earlier measurements are replaced.
        archive: Read the images from this archive; without ``images``, by default that of the run.
        splits: Without ``images``: only these splits.
        validation: The split with the confusion of the correction; empty: all whose names begin with ``val``; ``none``: no
            correction.
        commands, notes, skipped: For the record: commands that give the same, warnings, and files that were skipped before.
        progress: Show progress bars if the output is a terminal.
        options: Further arguments of :func:`~pscl_hpc.segmentation.predict.predict`.

    Raises:
        UserError: a name is unknown, or the arguments of :func:`predict` are wrong.
    """
    wanted = wanted or Wanted()
    folder, config, predictor = open_run(
        run, tta=options.get("tta"), adapt=options.get("adapt")
    )  # fmt: skip
    rules = wanted.rules(predictor.classes)
    target = Path(out) if out is not None else folder.path / FOLDER
    if images and splits:
        raise UserError("--split chooses images of the archive; leave it out, or name no image")
    if not images:
        archive = archive or config.data.archive
        images = [record.id for record in _collection(archive, config, predictor, splits)]
    correction = _correction(config, predictor, validation, progress)
    predicted = predict(
        run,
        images,
        out=target / "predictions",
        archive=archive,
        confidence=True,
        resume=True,
        progress=progress,
        **options,
    )
    source = Archive(archive) if archive is not None else None
    measured = _measure_predictions(predicted, rules, wanted, source, target, progress)
    settings = {
        "ingest options": str(predicted.options) if predicted.options else "as in the archive",
        "test-time augmentation": predictor.inference.tta,
        "adaptation": f"{predictor.inference.adapt:g}",
        "archive": str(archive or ""),
    }
    return _write(
        target,
        measured,
        rules,
        source=str(run),
        masks=False,
        correction=correction,
        references=tuple(config.references),
        settings=settings,
        commands=commands,
        warnings=[*notes, *predicted.warnings],
        skipped=[*skipped, *predicted.skipped],
    )


def measure_masks(
    path: str | Path,
    ids: Sequence[str] = (),
    *,
    out: str | Path,
    wanted: Wanted | None = None,
    dataset: str = "",
    splits: Sequence[str] = (),
    progress: bool = False,
) -> Measured:
    """Measure the masks of an archive.

    Args:
        path: The archive.
        ids: Images; none: all that have a mask.
        out: Output folder.
        wanted: What is measured.
        dataset: The collection; may be left out if only one has masks.
        splits: Only these splits.
        progress: Show a progress bar if the output is a terminal.

    Raises:
        UserError: a name is unknown, an image has no mask, or the images are from several collections.
    """
    wanted = wanted or Wanted()
    archive = Archive(path)
    records: Sequence[ImageRecord]
    if ids:
        records = [archive.find(name) for name in ids]
        missing = [record.id for record in records if not record.has_mask]
        if missing:
            raise UserError(f"{path}: {missing[0]} has no mask; name annotated images")
    else:
        records = archive.select(datasets=[dataset] if dataset else None, has_mask=True)
    records = _of_splits(records, splits, path)
    homes = sorted({record.dataset for record in records})
    if len(homes) != 1:
        found = f"masks of several collections ({', '.join(homes)})" if homes else "no mask"
        raise UserError(f"{path}: has {found}; choose one collection with --dataset")
    rules = wanted.rules(class_list(archive.collections[homes[0]], archive))
    measured = []
    with Progress("measure", len(records), unit="image", show=progress) as bar:
        for record in records:
            scale = wanted.um_per_pixel or record.um_per_pixel
            measured.append(
                measure_image(record.id, archive.read_mask(record.index), rules, um_per_pixel=scale)
            )
            bar.advance(record.id)
    return _write(
        Path(out),
        measured,
        rules,
        source=str(path),
        masks=True,
        correction=None,
        references=(),
        settings={"archive": str(path)},
        warnings=(),
        skipped=(),
    )


def _measure_predictions(
    predicted: PredictReport,
    rules: Rules,
    wanted: Wanted,
    archive: Archive | None,
    folder: Path,
    progress: bool,
) -> list[ImageMeasurement]:
    found = []
    with Progress("measure", len(predicted.written), unit="image", show=progress) as bar:
        for place, image in enumerate(predicted.written):
            labels = read_labels(Path(image.labels))
            pages = [one for one in predicted.written if one.source == image.source]
            name = image.source if len(pages) == 1 else f"{image.source}#{pages.index(image)}"
            mask = None
            if archive is not None:
                record = archive.find(image.source)
                if record.has_mask and ClassList.of(archive.collections[record.dataset]) == rules.classes:
                    mask = archive.read_mask(record.index)
            files = {"labels": image.labels, "overlay": image.overlay, "confidence": image.confidence}
            found.append(
                measure_image(
                    name,
                    labels,
                    rules,
                    um_per_pixel=wanted.um_per_pixel or image.um_per_pixel,
                    mask=mask,
                    files={
                        kind: Path(os.path.relpath(path, folder)).as_posix() for kind, path in files.items()
                    },
                    mean_confidence=image.mean_confidence,
                )
            )
            bar.advance(f"{place + 1}")
    return found


def _write(
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
    summary = summarise(images, rules, correction)
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


def _collection(
    archive: str | Path, config: SegmentationConfig, predictor: ImagePredictor, splits: Sequence[str]
) -> list[ImageRecord]:
    """The images of the collection that the run was trained on."""
    if not Path(archive).exists():
        raise UserError(
            f"{archive}: the archive of the run is not found; name images, or the archive with --archive"
        )
    source = Archive(archive)
    name = same_name(config.references[0].partition("/")[0], source.collections)
    return _of_splits(source.select(datasets=[name]), splits, archive)


def _of_splits(
    records: Sequence[ImageRecord], splits: Sequence[str], archive: str | Path
) -> list[ImageRecord]:
    known = sorted({record.split for record in records})
    for name in splits:
        if name not in known:
            raise UserError(f"--split '{name}': {archive} has no such images{did_you_mean(name, known)}")
    return [record for record in records if not splits or record.split in splits]


def _correction(
    config: SegmentationConfig, predictor: ImagePredictor, validation: str, progress: bool
) -> Correction | None:
    """The confusion on the validation images of the run's archive; None if there are none."""
    if validation == NO_VALIDATION:
        return None
    path = Path(config.data.archive)
    if not path.exists():
        if validation:
            raise UserError(f"{path}: the archive of the run is not found, so --validation cannot be used")
        return None
    archive = Archive(path)
    name = same_name(config.references[0].partition("/")[0], archive.collections)
    collection = archive.collections.get(name)
    annotated = [
        record
        for record in (archive.select(datasets=[name], has_mask=True) if collection else [])
        if record.id not in config.references
    ]
    known = sorted({record.split for record in annotated})
    if validation and validation not in known:
        raise UserError(
            f"--validation '{validation}': {path} has no annotated images of this split"
            f"{did_you_mean(validation, known)}"
        )
    chosen = [
        record
        for record in annotated
        if (record.split == validation if validation else record.split.startswith("val"))
    ]
    if not chosen or collection is None or ClassList.of(collection) != predictor.classes:
        return None
    counts = []
    with Progress("validate", len(chosen), unit="image", show=progress) as bar:
        for record in chosen:
            matrix = ConfusionMatrix(predictor.classes)
            matrix.update(predictor.archive_image(archive, record.index), archive.read_mask(record.index))
            counts.append(matrix.counts)
            bar.advance(record.id)
    return Correction(tuple(counts), " and ".join(sorted({record.split for record in chosen})))

"""Measuring a set: the predictions of a run for files or archive images, or the masks of an archive."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.archive.ingest.mask_values import Key
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.metallography.comparison import MaskOf, trained_on, validation_correction
from pscl_hpc.metallography.image import SMALLEST, ImageMeasurement, Rules, measure_image
from pscl_hpc.metallography.record import MEASUREMENTS
from pscl_hpc.metallography.result import Measured, write_result
from pscl_hpc.progress import Progress
from pscl_hpc.segmentation.annotations import class_list
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.config import InferenceOptions
from pscl_hpc.segmentation.evaluate import same_name
from pscl_hpc.segmentation.ingest_options import unseen_classes
from pscl_hpc.segmentation.input_files import list_files
from pscl_hpc.segmentation.input_masks import InputMasks
from pscl_hpc.segmentation.pictures import read_labels
from pscl_hpc.segmentation.predict import PredictReport, predict
from pscl_hpc.segmentation.trained import SegmentationConfig, open_run


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


def measure(
    run: str | Path,
    images: Sequence[str | Path] = (),
    *,
    wanted: Wanted | None = None,
    out: str | Path | None = None,
    archive: str | Path | None = None,
    splits: Sequence[str] = (),
    validation: str = "",
    masks: str | Path | None = None,
    mask_values: Mapping[Key, str] | None = None,
    scribbles: bool = False,
    commands: Sequence[str] = (),
    notes: Sequence[str] = (),
    skipped: Sequence[tuple[str, str]] = (),
    progress: bool = False,
    **options: Any,
) -> Measured:
    """Segment images with a fine-tuned run and measure them.

    Masks of archive images, and those in ``masks``, are compared with the predictions. Phase fractions are corrected by
    the confusion on validation images if the archive of the run has some.

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
        masks: Folder with masks of the image files, or a file of shapes on them.
        mask_values, scribbles: What these masks mean; see :meth:`InputMasks.find`.
        commands, notes, skipped: For the record: commands that give the same, warnings, and files that were skipped before.
        progress: Show progress bars if the output is a terminal.
        options: Further arguments of :func:`~pscl_hpc.segmentation.predict.predict`.

    Raises:
        UserError: a name is unknown, or the arguments of :func:`predict` are wrong.
    """
    wanted = wanted or Wanted()
    inference: InferenceOptions = {
        "tta": options.get("tta"),
        "adapt": options.get("adapt"),
        "correct_shading": options.get("correct_shading"),
        "unweighted": options.get("unweighted"),
    }
    folder, config, predictor = open_run(run, **inference)
    rules = wanted.rules(predictor.classes)
    target = Path(out) if out is not None else folder.path / MEASUREMENTS
    if masks is not None and (archive is not None or not images):
        raise UserError(
            "--masks is for image files; name them, or leave it out for images of an archive, which has masks"
        )
    if images and splits:
        raise UserError("--split chooses images of the archive; leave it out, or name no image")
    if not images:
        archive = archive or config.data.archive
        images = [record.id for record in _collection(archive, config, splits)]
    compared = None
    if masks is not None:
        files, _ = list_files(list(map(str, images)), target / "predictions")
        compared = InputMasks.find(
            Path(masks), files, predictor.classes, mask_values=mask_values, scribbles=scribbles
        )
    known = trained_on(config, compared) if compared else []
    if compared is not None and len(known) == len(compared.files):
        notes = [
            *notes,
            f"the model was trained on all images with a mask in {masks}, so its errors are not known",
        ]
    correction = validation_correction(config, predictor, validation, progress)
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
    mask_of = MaskOf(rules.classes, source, compared)
    measured = _measure_predictions(predicted, rules, wanted, mask_of, target, progress)
    if compared is not None and len(mask_of.skipped) == len(compared.files):
        source_file, reason = mask_of.skipped[0]
        raise UserError(f"--masks {masks}: no image could be compared with its mask: {source_file}: {reason}")
    settings = {
        "ingest options": str(predicted.options) if predicted.options else "as in the archive",
        "test-time augmentation": predictor.inference.tta,
        "adaptation": f"{predictor.inference.adapt:g}",
        "shading correction": "yes" if predictor.inference.correct_shading else "no",
        "class weights": "taken out" if predictor.inference.unweighted else "as trained",
        "archive": str(archive or ""),
    }
    return write_result(
        target,
        measured,
        rules,
        source=str(run),
        masks=False,
        correction=correction,
        references=(*config.references, *known),
        settings=settings,
        commands=commands,
        warnings=[
            *notes,
            *(compared.notes if compared else ()),
            *predicted.warnings,
            *_never_predicted(measured, rules, unseen_classes(folder)),
        ],
        skipped=[*skipped, *predicted.skipped, *mask_of.skipped],
    )


def _never_predicted(images: Sequence[ImageMeasurement], rules: Rules, unseen: Sequence[str]) -> list[str]:
    """A warning about classes that the model has learnt but predicts nowhere."""
    pixels = np.sum([image.pixels for image in images], axis=0)
    names = [rules.classes.names[index] for index in rules.classes.kept if not pixels[index]]
    if not (missing := [name for name in names if name not in unseen]):
        return []
    return [
        f"{' and '.join(missing)}: predicted in no image; if the images show it, train longer, or annotate an image that "
        "shows more of it"
    ]


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
    return write_result(
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
    mask_of: MaskOf,
    folder: Path,
    progress: bool,
) -> list[ImageMeasurement]:
    found = []
    with Progress("measure", len(predicted.written), unit="image", show=progress) as bar:
        for place, image in enumerate(predicted.written):
            labels = read_labels(Path(image.labels))
            pages = [one for one in predicted.written if one.source == image.source]
            name = image.source if len(pages) == 1 else f"{image.source}#{pages.index(image)}"
            mask = mask_of.read(image, labels.shape) if len(pages) == 1 else None
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


def _collection(archive: str | Path, config: SegmentationConfig, splits: Sequence[str]) -> list[ImageRecord]:
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

"""Test images of a study with the predictions of all its methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pscl_hpc.archive import Archive
from pscl_hpc.errors import UserError
from pscl_hpc.report.artefacts import DamagedFile, Evaluation, read_evaluation
from pscl_hpc.report.inspection import ClassStyle, class_styles
from pscl_hpc.report.pictures import Pixels, error_map, errors_uri, grey, image_uri, labels_uri
from pscl_hpc.report.study_results import Place, Row, StudyResults
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE, PREDICTIONS
from pscl_hpc.segmentation.palette import class_colours
from pscl_hpc.segmentation.pictures import picture_name, read_labels

SIDE = 300


@dataclass(frozen=True)
class MethodAnswer:
    """What one method's run says about one image."""

    method: str
    predicted: str
    errors: str
    """Data URI, empty where the annotation is not at hand."""
    dice: float | None


@dataclass(frozen=True)
class StudyImage:
    """One test image."""

    id: str
    references: tuple[str, ...]
    """What the runs were trained on."""
    seed: int
    width: int
    height: int
    image: str
    mask: str
    answers: tuple[MethodAnswer, ...]


@dataclass
class StudyPanel:
    """The images of one data set and split."""

    dataset: str
    split: str
    budget: int | str
    classes: tuple[ClassStyle, ...] = ()
    images: list[StudyImage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def study_panels(results: StudyResults, folder: Path) -> list[StudyPanel]:
    """One panel for each data set and split, of the first budget of each data set.

    Shown are the images named under ``show``, else the one whose Dice is the median; from the runs on the annotated
    images whose result is the median of the last method.
    """
    try:
        archive = Archive(results.archive_path) if Path(results.archive_path).exists() else None
    except (UserError, OSError):
        archive = None
    why = "cannot be opened from here" if archive is None else ""
    if archive is not None and archive.fingerprint != results.archive:
        # Its masks are not those that made the scores.
        archive.close()
        archive, why = None, "is not the one that was scored any more"
    try:
        panels = [_panel(results, place, folder, archive) for place in results.first_places]
        for panel in panels if why else ():
            panel.notes.insert(
                0, f"The archive {results.archive_path} {why}: micrographs and annotations are not shown."
            )
        return panels
    finally:
        if archive is not None:
            archive.close()


def _panel(results: StudyResults, place: Place, folder: Path, archive: Archive | None) -> StudyPanel:
    panel = StudyPanel(*place)
    rows = _comparable_rows(results, place)
    found: list[tuple[Row, Evaluation]] = []
    for row in rows:
        run = _inside(folder, row.folder)
        try:
            if run is None:
                raise DamagedFile("is not in the study's folder")
            evaluation = read_evaluation(run / EVALUATION_FILE)
            if row.split not in evaluation.splits:
                raise DamagedFile(f"has no scores of {row.split}")
        except DamagedFile as error:
            panel.notes.append(f"{row.folder}: {error}")
            continue
        found.append((row, evaluation))
    if not found:
        return panel
    classes = found[-1][1].classes
    panel.classes = class_styles(classes.names, classes.background)
    for name in _choose(results, found):
        shown = _image(name, found, folder, archive, panel.notes)
        if shown is not None:
            panel.images.append(shown)
    return panel


def _comparable_rows(results: StudyResults, place: Place) -> list[Row]:
    """One run of each method, as far as possible on the same annotated images and seed."""
    rows = [row for row in results.rows if (row.dataset, row.split, row.budget) == place]
    methods = [name for name in results.methods if any(row.method == name for row in rows)]
    last = sorted((row for row in rows if row.method == methods[-1]), key=lambda row: row.mean_dice or 0.0)
    median = last[(len(last) - 1) // 2]
    chosen = []
    for method in methods:
        own = [row for row in rows if row.method == method]
        same = [row for row in own if (row.references, row.seed) == (median.references, median.seed)]
        chosen.append((same or own)[0])
    return chosen


def _choose(results: StudyResults, found: Sequence[tuple[Row, Evaluation]]) -> list[str]:
    split = found[0][0].split
    common = set.intersection(*(set(evaluation.splits[split].per_image) for _, evaluation in found))
    wanted = [name for name in results.show if name in common]
    if wanted or not common:
        return wanted
    ratings = found[-1][1].splits[split].per_image
    ranked = sorted(common, key=lambda name: (ratings[name] or 0.0, name))
    return [ranked[(len(ranked) - 1) // 2]]


def _image(
    name: str,
    found: Sequence[tuple[Row, Evaluation]],
    folder: Path,
    archive: Archive | None,
    notes: list[str],
) -> StudyImage | None:
    classes = found[-1][1].classes
    colours = class_colours(classes.count, classes.background)
    image: Pixels | None = None
    truth: Pixels | None = None
    if archive is not None:
        try:
            record = archive.find(name)
            image = grey(archive.read_unit(record.index, channels=record.channels))
            truth = classes.without_ignored(archive.read_mask(record.index)) if record.has_mask else None
        except (UserError, OSError):
            notes.append(f"{name}: is not in the archive any more.")
    answers = []
    shape = (1, 1)
    for row, evaluation in found:
        run = _inside(folder, row.folder)
        assert run is not None
        file = run / PREDICTIONS / picture_name(row.split) / f"{picture_name(name)}.png"
        try:
            labels = read_labels(file)
        except (OSError, ValueError):
            notes.append(f"{file}: cannot be read as a picture; run 'pscl-hpc evaluate {run}' again.")
            continue
        if labels.ndim != 2 or (image is not None and labels.shape != image.shape[:2]):
            notes.append(f"{file}: has not the size of its image; run 'pscl-hpc evaluate {run}' again.")
            continue
        shape = labels.shape
        errors = ""
        if truth is not None and image is not None:
            errors = errors_uri(error_map(labels, truth, classes.background), image, SIDE)
        answers.append(
            MethodAnswer(
                row.method,
                labels_uri(labels, colours, SIDE),
                errors,
                evaluation.splits[row.split].per_image[name],
            )
        )
    if not answers:
        return None
    return StudyImage(
        id=name,
        references=found[-1][0].references,
        seed=found[-1][0].seed,
        width=shape[1],
        height=shape[0],
        image="" if image is None else image_uri(image, SIDE),
        mask="" if truth is None else labels_uri(truth, colours, SIDE),
        answers=tuple(answers),
    )


def _inside(folder: Path, name: str) -> Path | None:
    """A run folder below the study's; None for a path that leads out of it."""
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) and path != folder.resolve() else None

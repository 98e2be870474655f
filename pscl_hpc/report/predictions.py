"""Scored images beside their annotation, the predictions of a few runs, and where these are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pscl_hpc.archive import Archive
from pscl_hpc.errors import UserError
from pscl_hpc.report.artefacts import Evaluation
from pscl_hpc.report.inspection import ClassStyle, class_styles
from pscl_hpc.report.pictures import (
    CORRECT,
    UNSCORED,
    Pixels,
    error_map,
    errors_uri,
    grey,
    image_uri,
    labels_uri,
)
from pscl_hpc.report.scores import CollectionScores, Group, Row
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.evaluate import PREDICTIONS
from pscl_hpc.segmentation.palette import class_colours
from pscl_hpc.segmentation.pictures import picture_name, read_labels

MOST_RUNS = 3
"""Runs of a collection whose predictions are shown side by side."""
MOST_IMAGES = 12
"""Images on the whole page, at most three per collection, at least one."""
SIDE = 400


@dataclass(frozen=True)
class Answer:
    """What one run says about one image."""

    run: str
    start: str
    predicted: str
    errors: str
    """Data URI, empty where the annotation is not at hand."""
    dice: float | None
    """Mean over the classes of this image."""
    right: float | None
    """Share of scored pixels that are right."""


@dataclass(frozen=True)
class PredictionFigure:
    """One scored image."""

    id: str
    place: str
    """Why it is shown: best, typical or worst."""
    width: int
    height: int
    image: str
    mask: str
    answers: tuple[Answer, ...]


@dataclass
class PredictionPanel:
    """The shown images of one table of scores."""

    name: str
    split: str
    classes: tuple[ClassStyle, ...]
    runs: tuple[Row, ...]
    """The last one decides which images are best and worst."""
    starts: tuple[str, ...]
    """How each of the runs began, and what else is different in it."""
    candidates: int = 0
    """Images among which the shown ones were chosen."""
    figures: list[PredictionFigure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prediction_panels(tables: Sequence[CollectionScores]) -> list[PredictionPanel]:
    """One panel for each table of scores."""
    most = max(1, min(3, MOST_IMAGES // max(1, len(tables))))
    archives = _Archives()
    try:
        return [_panel(table, most, archives) for table in tables]
    finally:
        archives.close()


def scored_on(archive: Archive, evaluation: Evaluation) -> bool:
    """Whether scores were made on this content; nothing speaks against it where the evaluation does not say."""
    return evaluation.archive in ("", archive.fingerprint)


def _panel(table: CollectionScores, most: int, archives: _Archives) -> PredictionPanel:
    shown = _choose_runs(table)
    rows = tuple(row for _, row in shown)
    classes = rows[-1].evaluation.classes
    panel = PredictionPanel(
        name=table.name,
        split=table.split,
        classes=class_styles(classes.names, classes.background),
        runs=rows,
        starts=tuple(group.label for group, _ in shown),
    )
    # Images that all shown runs scored, best first in the eyes of the last run.
    ratings = rows[-1].scores.per_image
    common = [name for name in ratings if all(name in row.scores.per_image for row in rows)]
    common.sort(key=lambda name: (-_or_zero(ratings[name]), name))
    common = [name for name in common if any(_file(row, table.split, name).is_file() for row in rows)]
    if not common:
        panel.notes.append("No predicted masks lie in the folders of these runs.")
        return panel
    panel.candidates = len(common)
    archive = archives.open(rows[-1].run.locate(str(rows[-1].run.setting("data.archive"))), panel.notes)
    if archive is not None:
        others = [row.run.label for row in rows if not scored_on(archive, row.evaluation)]
        if others:
            # Its masks are not those that made the scores.
            panel.notes.append(
                f"The archive {archive.path} is not the one that {', '.join(others)} "
                f"{'was' if len(others) == 1 else 'were'} scored on: micrographs and annotations are not shown "
                "beside the predictions."
            )
            archive = None
    for place, name in _choose_images(common, most):
        figure = _figure(name, place, panel, archive)
        if figure is not None:
            panel.figures.append(figure)
    return panel


def _choose_runs(table: CollectionScores) -> list[tuple[Group, Row]]:
    """One run per group, on the reference whose result is the median of the last group; from scratch first."""
    groups = sorted(table.groups, key=lambda group: group.pretrained)
    groups = groups[: MOST_RUNS - 1] + groups[MOST_RUNS - 1 :][-1:]
    reference = _median(groups[-1]).reference
    return [
        (group, next((row for row in group.rows if row.reference == reference), _median(group)))
        for group in groups
    ]


def _median(group: Group) -> Row:
    ranked = sorted(group.rows, key=lambda row: _or_zero(row.scores.mean_dice))
    return ranked[(len(ranked) - 1) // 2]


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value


def _file(row: Row, split: str, image_id: str) -> Path:
    return row.run.path / PREDICTIONS / picture_name(split) / f"{picture_name(image_id)}.png"


def _choose_images(ranked: Sequence[str], most: int) -> list[tuple[str, str]]:
    """(why, id) of at most ``most`` images from best to worst."""
    last = len(ranked) - 1
    if most == 1 or last == 0:
        return [("typical" if last else "", ranked[last // 2])]
    places = {0: "best", last: "worst"}
    if most > 2:
        places.setdefault(last // 2, "typical")
    return [(places[place], ranked[place]) for place in sorted(places)]


def _figure(
    name: str, place: str, panel: PredictionPanel, archive: Archive | None
) -> PredictionFigure | None:
    """Everything that can be shown of an image; None, with a note, when not one prediction can be read."""
    classes = panel.runs[-1].evaluation.classes
    colours = class_colours(classes.count, classes.background)
    image, truth = _read(archive, name, classes)
    answers = []
    size = (1, 1)
    for row, start in zip(panel.runs, panel.starts, strict=True):
        file = _file(row, panel.split, name)
        try:
            labels = read_labels(file)
        except (OSError, ValueError):
            panel.notes.append(
                f"{file}: cannot be read as a picture; run 'pscl-hpc evaluate {row.run.path}' again."
            )
            continue
        if labels.ndim != 2 or (image is not None and labels.shape != image.shape[:2]):
            panel.notes.append(
                f"{file}: has not the size of its image; run 'pscl-hpc evaluate {row.run.path}' again."
            )
            continue
        size = labels.shape
        errors, right = "", None
        if truth is not None and image is not None:
            wrong = error_map(labels, truth, classes.background)
            errors, right = errors_uri(wrong, image, SIDE), _share_right(wrong)
        dice = row.scores.per_image[name]
        answers.append(Answer(row.run.label, start, labels_uri(labels, colours, SIDE), errors, dice, right))
    if not answers:
        return None
    return PredictionFigure(
        id=name,
        place=place,
        width=size[1],
        height=size[0],
        image="" if image is None else image_uri(image, SIDE),
        mask="" if truth is None else labels_uri(truth, colours, SIDE),
        answers=tuple(answers),
    )


def _read(archive: Archive | None, name: str, classes: ClassList) -> tuple[Pixels | None, Pixels | None]:
    """Micrograph and mask (unscored pixels 255), where the archive has them."""
    if archive is None:
        return None, None
    try:
        record = archive.find(name)
        image = grey(archive.read_unit(record.index, channels=record.channels))
        truth = classes.without_ignored(archive.read_mask(record.index)) if record.has_mask else None
    except (UserError, OSError):
        return None, None
    return image, truth


class _Archives:
    """Archives by path, each opened once."""

    def __init__(self) -> None:
        self._open: dict[Path, Archive | None] = {}

    def open(self, path: Path, notes: list[str]) -> Archive | None:
        """The archive, or None with a note when it is not there any more."""
        if path not in self._open:
            try:
                self._open[path] = Archive(path) if path.exists() else None
            except (UserError, OSError):
                self._open[path] = None
        if self._open[path] is None:
            notes.append(
                f"The archive {path} cannot be opened from here: micrographs and annotations are "
                "not shown beside the predictions."
            )
        return self._open[path]

    def close(self) -> None:
        """Close all files."""
        for archive in self._open.values():
            if archive is not None:
                archive.close()


def _share_right(errors: Pixels) -> float | None:
    scored = int((errors != UNSCORED).sum())
    return int((errors == CORRECT).sum()) / scored if scored else None

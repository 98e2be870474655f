"""Scored images with their annotation, the predictions of a few runs, and the wrong pixels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pscl_hpc.archive import Archive
from pscl_hpc.errors import UserError
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
from pscl_hpc.results.evaluation import Evaluation, read_evaluation
from pscl_hpc.results.scores import CollectionScores
from pscl_hpc.results.statistics import Scored
from pscl_hpc.results.study import Place, Row, StudyResults
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE, PREDICTIONS
from pscl_hpc.segmentation.palette import class_colours
from pscl_hpc.segmentation.pictures import picture_name, picture_names, read_labels

MOST_RUNS = 3
"""Runs of a collection whose predictions are shown side by side, outside studies."""
MOST_IMAGES = 12
"""Images on the whole page, at most three and at least one for each collection, outside studies."""
SIDE, STUDY_SIDE = 400, 300
"""Longest side of a picture in pixels."""
_Run = TypeVar("_Run", bound=Scored)


@dataclass(frozen=True)
class Shown:
    """A run whose predictions are shown."""

    label: str
    folder: Path
    evaluation: Evaluation

    def file(self, split: str, image: str) -> Path:
        """The predicted mask of an image."""
        return self.folder / PREDICTIONS / picture_name(split) / f"{self._names[split][image]}.png"

    @cached_property
    def _names(self) -> dict[str, dict[str, str]]:
        """Split -> image -> stem of its file."""
        return {split: picture_names(scores.per_image) for split, scores in self.evaluation.splits.items()}


@dataclass(frozen=True)
class Answer:
    """The prediction of one run for one image."""

    label: str
    predicted: str
    errors: str
    """Data URI, empty where the annotation is not available."""
    dice: float | None
    """Mean over the classes of this image."""
    right: float | None
    """Share of scored pixels that are right."""


@dataclass(frozen=True)
class PredictionFigure:
    """One scored image."""

    id: str
    place: str
    """Why it is shown: best, typical or worst; or empty."""
    width: int
    height: int
    image: str
    mask: str
    answers: tuple[Answer, ...]


@dataclass
class PredictionPanel:
    """The images of one table of scores."""

    name: str
    split: str
    side: int
    """Longest side of a picture in pixels."""
    budget: str = ""
    caption: str = ""
    shown: tuple[Shown, ...] = ()
    """The last one decides which images are best and worst."""
    classes: tuple[ClassStyle, ...] = ()
    figures: list[PredictionFigure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prediction_panels(tables: Sequence[CollectionScores]) -> list[PredictionPanel]:
    """One panel for each table: its best, a typical and its worst image, by the last of the shown runs.

    At most :data:`MOST_RUNS` groups are shown, by the runs on the annotated image whose result is the median of the
    last group.
    """
    most = max(1, min(3, MOST_IMAGES // max(1, len(tables))))
    panels = []
    for table in tables:
        panel = PredictionPanel(table.name, table.split, SIDE)
        groups = sorted(table.groups, key=lambda group: group.pretrained)
        groups = groups[: MOST_RUNS - 1] + groups[MOST_RUNS - 1 :][-1:]
        rows = _matching([group.rows for group in groups])
        panel.shown = tuple(
            Shown(group.label, row.run.path, row.evaluation) for group, row in zip(groups, rows, strict=True)
        )
        ranked = _ranked(panel)
        panel.caption = (
            "Runs shown: "
            + "; ".join(
                f"{group.label}, trained on {row.reference}" for group, row in zip(groups, rows, strict=True)
            )
            + ". Where there are runs on several annotated images, these are on the one with the median result. "
            + f"Chosen among {len(ranked)} image{'' if len(ranked) == 1 else 's'}."
        )
        archive = rows[-1].run.locate(str(rows[-1].run.setting("data.archive")))
        scored = [row.evaluation.archive for row in rows]
        _draw(panel, _best_typical_worst(ranked, most), archive, scored)
        panels.append(panel)
    return panels


def study_panels(results: StudyResults, folder: Path) -> list[PredictionPanel]:
    """One panel for each data set and split, of the first budget of each data set, with the runs of all methods.

    Shown are the images named under ``show``, else the one whose Dice is the median; by the runs on the annotated
    images whose result is the median of the last method.
    """
    return [_study_panel(results, place, folder) for place in results.first_places]


def _study_panel(results: StudyResults, place: Place, folder: Path) -> PredictionPanel:
    budget = f"budget {place[2]}" if len(results.budgets) > 1 else ""
    panel = PredictionPanel(place[0], place[1], STUDY_SIDE, budget)
    members: dict[str, list[Row]] = {}
    for row in results.rows:
        if row.place == place:
            members.setdefault(row.method, []).append(row)
    rows = _matching([members[method] for method in results.methods if method in members])
    more = f" and {len(rows[-1].references) - 1} more" if len(rows[-1].references) > 1 else ""
    panel.caption = f"Runs trained on {rows[-1].references[0]}{more}, seed {rows[-1].seed}."
    shown = []
    for row in rows:
        run = (folder / row.folder).resolve()
        try:
            # results.json may be edited: nothing outside the study is read.
            if folder.resolve() not in run.parents:
                raise UserError(f"{row.folder}: is not in the study's folder")
            evaluation = read_evaluation(run / EVALUATION_FILE)
            if row.split not in evaluation.splits:
                raise UserError(f"{row.folder}: has no scores of {row.split}")
        except UserError as error:
            panel.notes.append(str(error))
            continue
        shown.append(Shown(row.method, run, evaluation))
    panel.shown = tuple(shown)
    ranked = _ranked(panel)
    wanted = [name for name in results.show if name in ranked] or ranked[(len(ranked) - 1) // 2 :][:1]
    _draw(panel, [(name, "") for name in wanted], Path(results.archive_path), [results.archive])
    return panel


def _matching(groups: Sequence[Sequence[_Run]]) -> list[_Run]:
    """One run of each group, as far as possible on the same annotated images and seed."""
    median = _median(groups[-1])

    def match(group: Sequence[_Run]) -> _Run:
        same = [run for run in group if run.references == median.references]
        exact = [run for run in same if run.seed == median.seed]
        return [*exact, *same, _median(group)][0]

    return [match(group) for group in groups]


def _median(runs: Sequence[_Run]) -> _Run:
    return sorted(runs, key=lambda run: run.mean_dice or 0.0)[(len(runs) - 1) // 2]


def _ranked(panel: PredictionPanel) -> list[str]:
    """Images that all shown runs scored and some have a prediction of, best first by the last run."""
    if not panel.shown:
        return []
    scores = [run.evaluation.splits[panel.split].per_image for run in panel.shown]
    common = [
        name
        for name in scores[-1]
        if all(name in one for one in scores)
        and any(run.file(panel.split, name).is_file() for run in panel.shown)
    ]
    return sorted(common, key=lambda name: (-(scores[-1][name] or 0.0), name))


def _best_typical_worst(ranked: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Id and place of at most ``most`` images."""
    last = len(ranked) - 1
    if last < 1 or most == 1:
        return [(name, "typical" if last else "") for name in ranked[last // 2 :][:1]]
    places = {0: "best", last: "worst"}
    if most > 2:
        places.setdefault(last // 2, "typical")
    return [(ranked[place], places[place]) for place in sorted(places)]


def _draw(
    panel: PredictionPanel, images: Sequence[tuple[str, str]], path: Path, scored: Collection[str]
) -> None:
    """Fill a panel with images (id and place) of an archive, the fingerprints of which are ``scored``."""
    with ExitStack() as stack:
        archive = _open(path, stack)
        reason = "cannot be opened"
        if archive is not None and set(scored) != {archive.fingerprint}:
            # The scores belong to other masks.
            archive, reason = None, "is not the archive that was scored"
        if archive is None:
            panel.notes.append(f"The archive {path} {reason}: micrographs and annotations are not shown.")
        if not images:
            panel.notes.append("There are no predicted masks in the folders of these runs.")
            return
        classes = panel.shown[-1].evaluation.classes
        panel.classes = class_styles(classes.names, classes.background)
        for name, place in images:
            figure = _figure(name, place, panel, archive, classes)
            if figure is not None:
                panel.figures.append(figure)


def _open(path: Path, stack: ExitStack) -> Archive | None:
    try:
        return stack.enter_context(Archive(path)) if path.exists() else None
    except (UserError, OSError):
        return None


def _figure(
    name: str, place: str, panel: PredictionPanel, archive: Archive | None, classes: ClassList
) -> PredictionFigure | None:
    """All that can be shown of an image; None, with a note, if no prediction can be read."""
    colours = class_colours(classes.count, classes.background)
    image, truth = _read(archive, name, classes)
    answers = []
    size = (1, 1)
    for run in panel.shown:
        file = run.file(panel.split, name)
        try:
            labels = read_labels(file)
            if labels.ndim != 2 or (image is not None and labels.shape != image.shape[:2]):
                raise ValueError("its size differs from that of the image")
        except (OSError, ValueError) as error:
            panel.notes.append(
                f"{file}: cannot be shown ({error}); run 'pscl-hpc evaluate {run.folder}' again."
            )
            continue
        size = labels.shape
        errors, right = "", None
        if truth is not None and image is not None:
            wrong = error_map(labels, truth, classes.background)
            errors = errors_uri(wrong, image, panel.side)
            known = int((wrong != UNSCORED).sum())
            right = int((wrong == CORRECT).sum()) / known if known else None
        dice = run.evaluation.splits[panel.split].per_image[name]
        answers.append(Answer(run.label, labels_uri(labels, colours, panel.side), errors, dice, right))
    if not answers:
        return None
    return PredictionFigure(
        id=name,
        place=place,
        width=size[1],
        height=size[0],
        image="" if image is None else image_uri(image, panel.side),
        mask="" if truth is None else labels_uri(truth, colours, panel.side),
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

"""``results.json`` of a study: written by ``pscl-hpc study``, read by its tables and its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pscl_hpc.errors import UserError
from pscl_hpc.results.statistics import Comparison, Record, Spread

RESULTS_FILE = "results.json"
Place = tuple[str, str, int | str]
"""Data set, split, budget."""
Unit = Literal["images", "seeds", "pairs"]
"""What the two runs of a pair share: annotated images (or a set of them); the seed, where there is a single set of
images; ``pairs`` where both kinds occur."""


class _Placed(Record):
    """A result of a method in one table."""

    method: str
    dataset: str
    split: str
    budget: int | str

    @property
    def place(self) -> Place:
        """The table that it belongs to."""
        return self.dataset, self.split, self.budget


class Row(_Placed):
    """The scores of one run on one split."""

    references: tuple[str, ...]
    seed: int
    mean_dice: float | None
    dice: dict[str, float | None]
    mean_iou: float | None
    pixel_accuracy: float | None
    fraction_error: dict[str, float] | None = None
    """Error of the phase fraction of each foreground class, see :meth:`Evaluation.fraction_errors`; None if the evaluation
    does not have it."""
    images: int
    validation_dice: float | None
    """Mean Dice on the validation images at the chosen step."""
    step: int
    """The chosen step."""
    seconds: dict[str, float]
    """By part: pretrain (of its trunk, which other runs may share), finetune or classifier, evaluate."""
    device: str
    commit: str
    folder: str
    """Run folder, from the study's folder."""
    pretraining: str
    """Run folder of the trunk; empty from random weights."""
    key: str
    """Hash of everything that decides the run's numbers."""


class Worst(Record):
    """The annotated images with the lowest Dice, seeds averaged."""

    references: tuple[str, ...]
    mean_dice: float


class Line(_Placed):
    """A method on one split with one budget."""

    runs: int
    mean_dice: Spread | None
    dice: dict[str, Spread | None]
    pixel_accuracy: Spread | None
    fraction_error: Spread | None = None
    """Mean over the foreground classes, of the runs that have it."""
    worst: Worst | None
    validation_dice: Spread | None
    """Best mean Dice on the validation images, by which settings may be chosen."""


class Compared(_Placed, Comparison):
    """A method against a baseline; data set and split are empty for the average over the headline scores."""

    baseline: str
    unit: Unit
    """What the pairs are."""


class Sampling(Record):
    """How many sampled patches of a pretraining are on their classes."""

    method: str
    folder: str
    """Run folder of the trunk, from the study's folder."""
    references: tuple[str, ...]
    """Annotated images that the templates came from; empty for clusters."""
    first: tuple[float | None, ...]
    """Mean purity of each scale, coarse to fine, over the first quarter of the steps; None without masks."""
    last: tuple[float | None, ...]
    """The same over the last quarter."""


class PoolPart(Record):
    """Images of one data set and split in a pretraining."""

    dataset: str
    split: str
    images: int


class Failure(Record):
    """A job that failed or was skipped."""

    job: str
    state: str
    """failed, or skipped because its pretraining failed."""
    reason: str
    folder: str


class StudyResults(Record):
    """All results of a study."""

    study: str
    written: str
    archive: str
    """Fingerprint."""
    archive_path: str
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    budgets: tuple[int | str, ...]
    seeds: tuple[int, ...]
    pretrain_per: str
    headline: tuple[str, ...]
    show: tuple[str, ...]
    confidence: float
    pools: dict[str, tuple[PoolPart, ...]]
    """By method: the images named by ``data`` of its pretrainings."""
    pools_without_own: tuple[str, ...]
    """Methods whose pretrainings leave their own annotated images out of the pool."""
    runs: int
    """Fine-tunings and classifiers of the study."""
    failed: tuple[Failure, ...]
    """Jobs of the last call that failed or were skipped."""
    missing: tuple[str, ...]
    """Fine-tunings and classifiers without scores."""
    table: tuple[Line, ...]
    comparisons: tuple[Compared, ...]
    rows: tuple[Row, ...]
    sampling: tuple[Sampling, ...]
    """Of the pretrainings that sample patches."""

    @property
    def scored(self) -> int:
        """Fine-tunings with scores."""
        return len({row.key for row in self.rows})

    @property
    def commits(self) -> tuple[str, ...]:
        """Commits of the runs."""
        return tuple(sorted({row.commit for row in self.rows}))

    @property
    def places(self) -> tuple[Place, ...]:
        """The tables of scores."""
        return tuple(dict.fromkeys(line.place for line in self.table))

    @property
    def first_places(self) -> tuple[Place, ...]:
        """The tables of the first budget of each data set."""
        first: dict[str, int | str] = {}
        for dataset, _, budget in self.places:
            first.setdefault(dataset, budget)
        return tuple(place for place in self.places if first[place[0]] == place[2])

    @property
    def baselines(self) -> tuple[str, ...]:
        """The entries that others were compared with."""
        return tuple(dict.fromkeys(found.baseline for found in self.comparisons))


def pool_text(parts: Sequence[PoolPart], *, without_own: bool) -> str:
    """The images of a pool in words."""
    named = [f"{part.dataset} {part.images} ({part.split or 'no split'})" for part in parts]
    less = ", less the annotated images of each pretraining" if without_own else ""
    return f"{sum(part.images for part in parts)} images, {', '.join(named)}{less}"


def read_results(path: Path) -> StudyResults:
    """Results from a study's folder or from the file itself.

    Raises:
        UserError: the file does not exist or is damaged.
    """
    file = path / RESULTS_FILE if path.is_dir() else path
    try:
        return StudyResults.model_validate_json(file.read_bytes())
    except OSError:
        raise UserError(f"{file}: not found; run 'pscl-hpc study' first") from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        raise UserError(
            f"{file}: not the results of a study ({where} is wrong); run 'pscl-hpc study' again"
        ) from None

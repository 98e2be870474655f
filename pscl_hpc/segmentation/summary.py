"""One-shot results over repeated references: mean, standard deviation and the worst."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pscl_hpc.errors import UserError
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE


@dataclass(frozen=True)
class Spread:
    """A score over runs."""

    mean: float
    std: float | None
    """Sample standard deviation (divided by n - 1, ddof = 1); None for a single run."""
    worst: float
    count: int
    """Runs that have the score."""


@dataclass(frozen=True)
class Summary:
    """Scores over the runs of one collection and split."""

    collection: str
    split: str
    runs: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    """Of each run."""
    mean_dice: Spread | None
    """None where no run has the score."""
    mean_iou: Spread | None
    pixel_accuracy: Spread | None
    dice: dict[str, Spread | None]
    """Per class."""


def summarise(runs: Sequence[str | Path], *, split: str = "test") -> Summary:
    """Summarise evaluated runs of one collection, usually one for each reference image.

    Raises:
        UserError: a run is not evaluated on ``split``, or runs are of different collections.
    """
    if not runs:
        raise ValueError("no run to summarise")
    evaluations = [read_evaluation(Path(run)) for run in runs]
    first = evaluations[0]["collection"]
    scores = []
    for run, evaluation in zip(runs, evaluations, strict=True):
        if evaluation["collection"] != first:
            raise UserError(
                f"{run}: is of the collection {evaluation['collection']}, not {first}; summarise each alone"
            )
        if split not in evaluation["splits"]:
            raise UserError(
                f"{run}: is not scored on '{split}'; run 'pscl-hpc evaluate {run} --split {split}'"
            )
        scores.append(evaluation["splits"][split])
    return Summary(
        collection=first,
        split=split,
        runs=tuple(str(run) for run in runs),
        references=tuple(tuple(evaluation["references"]) for evaluation in evaluations),
        mean_dice=spread(score["mean_dice"] for score in scores),
        mean_iou=spread(score["mean_iou"] for score in scores),
        pixel_accuracy=spread(score["pixel_accuracy"] for score in scores),
        dice={name: spread(score["dice"].get(name) for score in scores) for name in scores[0]["dice"]},
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, sample standard deviation and minimum of the values that are known; None when there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), std, min(known), len(known))


def read_evaluation(run: Path) -> dict[str, Any]:
    """``evaluation.json`` of a run; UserError when there is none or it is damaged."""
    path = run / EVALUATION_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{run}: is not evaluated yet; run 'pscl-hpc evaluate {run}'") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        content = None
    if not isinstance(content, dict) or not {"collection", "references", "splits"} <= content.keys():
        raise UserError(f"{path}: is damaged; run 'pscl-hpc evaluate {run}' again")
    return content

"""Scores over repeated runs: reading ``evaluation.json``; mean, standard deviation and worst."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
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
    """Sample standard deviation (divided by n - 1); None for a single run."""
    worst: float
    count: int
    """Number of runs that have the score."""


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, sample standard deviation and minimum of the values that are not None; None when there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), std, min(known), len(known))


def read_evaluation(run: Path) -> dict[str, Any]:
    """``evaluation.json`` of a run; UserError when it is missing or damaged."""
    path = run / EVALUATION_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{run}: has not been evaluated; run 'pscl-hpc evaluate {run}'") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        content = None
    if not isinstance(content, dict) or not {"collection", "references", "splits"} <= content.keys():
        raise UserError(f"{path}: is damaged; run 'pscl-hpc evaluate {run}' again")
    return content

"""The page of a study: comparisons, scores of every method, predictions side by side, what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.report.curves import Chart, scale_name
from pscl_hpc.report.pictures import CONFUSED, ERROR_COLOURS, EXTRA, MISSED
from pscl_hpc.report.study_figures import (
    budget_chart,
    comparison_chart,
    overall,
    score_chart,
    what,
)
from pscl_hpc.report.study_predictions import study_panels
from pscl_hpc.report.study_results import Compared, Estimate, Line, StudyResults
from pscl_hpc.report.study_text import PURITY, UNITS, notes, pair_text, pool_text, wins_text
from pscl_hpc.segmentation.palette import hex_colour

ERRORS = (
    ("missed: annotated as a class, predicted as background", hex_colour(ERROR_COLOURS[MISSED])),
    ("extra: background predicted as a class", hex_colour(ERROR_COLOURS[EXTRA])),
    ("one class taken for another", hex_colour(ERROR_COLOURS[CONFUSED])),
)
"""What the colours of error maps mean."""


@dataclass(frozen=True)
class ScoreTable:
    """One data set, split and budget."""

    dataset: str
    split: str
    budget: int | str
    classes: tuple[str, ...]
    lines: tuple[Line, ...]
    chart: Chart


@dataclass(frozen=True)
class ComparisonTable:
    """All methods against one baseline."""

    baseline: str
    overall: tuple[Compared, ...]
    """Over all headline scores."""
    lines: tuple[Compared, ...]
    """By data set and split."""
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Cost:
    """Mean seconds of the parts of a method's runs."""

    method: str
    seconds: tuple[float | None, ...]
    """pretrain, finetune, evaluate."""


def study_context(results: StudyResults, folder: Path) -> dict[str, object]:
    """What the template ``study.html.j2`` shows."""
    tables = [
        ScoreTable(
            dataset=place[0],
            split=place[1],
            budget=place[2],
            classes=_classes(lines),
            lines=tuple(lines),
            chart=score_chart(results, place, f"scores{index}"),
        )
        for index, place in enumerate(results.places)
        for lines in [[line for line in results.table if line.place == place]]
    ]
    scales = max((len(found.last) for found in results.sampling), default=0)
    splits = dict.fromkeys((dataset, split) for dataset, split, _ in results.places)
    curves = [
        (f"{dataset}, {split}", chart)
        for index, (dataset, split) in enumerate(splits)
        if (chart := budget_chart(results, dataset, split, f"budget{index}")) is not None
    ]
    return {
        "results": results,
        "sentences": sentences(results),
        "notes": notes(results),
        "pairs": pair_text(results),
        "wins": wins_text,
        "tables": tables,
        "comparisons": [
            ComparisonTable(
                baseline,
                tuple(line for line in results.comparisons if line.baseline == baseline and not line.dataset),
                tuple(line for line in results.comparisons if line.baseline == baseline and line.dataset),
                tuple(
                    comparison_chart(results, lines, f"against{index}-{part}")
                    for part, lines in enumerate(overall(results, baseline))
                ),
            )
            for index, baseline in enumerate(results.baselines)
        ],
        "curves": curves,
        "purity": PURITY,
        "scales": [scale_name(index, scales) for index in range(scales)],
        "panels": study_panels(results, folder),
        "errors": ERRORS,
        "pools": {name: pool_text(results, name) for name in results.pools},
        "costs": _costs(results),
        "devices": sorted({row.device for row in results.rows}),
    }


def sentences(results: StudyResults) -> list[str]:
    """What the study found, one sentence for each baseline (and score), and no more than it found."""
    found = []
    for lines in (part for baseline in results.baselines for part in overall(results, baseline)):
        best = max(lines, key=_removed)
        value = best.error_removed
        assert value is not None
        scores, share = (
            f"Against “{best.baseline}”, over {what(results, lines)}",
            f"{100 * abs(value.value):.0f}% of the Dice error",
        )
        pairs = f"better with {best.wins} of {best.units} {UNITS[best.unit]}"
        if value.value > 0:
            found.append(
                f"{scores}, “{best.method}” does best: it removes {share}{_interval(results, value)} and is {pairs}."
            )
        else:
            found.append(
                f"{scores}, nothing does better: the nearest, “{best.method}”, adds {share}{_interval(results, value)}."
            )
    return found


def _removed(line: Compared) -> float:
    assert line.error_removed is not None
    return line.error_removed.value


def _interval(results: StudyResults, value: Estimate) -> str:
    if value.low is None or value.high is None:
        return " (no interval: too few pairs, or pairs with images in common)"
    said = f"{100 * value.low:+.0f}% to {100 * value.high:+.0f}% removed"
    doubt = ", so it may as well be none" if value.low <= 0 <= value.high else ""
    return f" ({100 * results.confidence:.0f}% interval {said}{doubt})"


def _classes(lines: Sequence[Line]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for line in lines for name in line.dice))


def _costs(results: StudyResults) -> list[Cost]:
    costs = []
    for method in results.methods:
        # A run has a row for each split, and runs share trunks: each run and each trunk counts once.
        runs = {row.key: row for row in results.rows if row.method == method}
        trunks = {row.pretraining: row.seconds.get("pretrain") for row in runs.values() if row.pretraining}
        parts = [
            [seconds for seconds in trunks.values() if seconds],
            *(
                [row.seconds[part] for row in runs.values() if part in row.seconds]
                for part in ("finetune", "evaluate")
            ),
        ]
        costs.append(Cost(method, tuple(sum(part) / len(part) if part else None for part in parts)))
    return costs

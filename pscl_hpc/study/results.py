"""What a study found: every run, tables, comparisons; ``results.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pscl_hpc.errors import UserError
from pscl_hpc.runs import RunFolder, now
from pscl_hpc.segmentation.summary import read_evaluation, spread
from pscl_hpc.study.plan import Cell, Plan
from pscl_hpc.study.schedule import Outcome
from pscl_hpc.study.stage import read_times
from pscl_hpc.study.statistics import CONFIDENCE, Comparison, compare

RESULTS_FILE = "results.json"
Row = dict[str, Any]


def gather(plan: Plan, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """All that is known of a study, whether it is complete or not.

    Args:
        plan: The study.
        outcomes: Of jobs that ran in this call; those that failed are named with their reason.

    Returns:
        ``rows`` (one for each run and split), ``table`` (one for each data set, split, budget and method),
        ``comparisons``, ``pools``, ``failed``, ``missing`` and the study itself, as plain values.
    """
    rows = [row for cell in plan.cells for row in _rows(plan, cell)]
    found = {(row["key"]) for row in rows}
    failed = [
        {
            "job": plan.jobs[key].label,
            "state": outcome.state,
            "reason": outcome.reason,
            "folder": str(plan.jobs[key].folder),
        }
        for key, outcome in outcomes.items()
        if outcome.state != "done"
    ]
    study = plan.study
    return {
        "study": study.name,
        "written": now(),
        "archive": plan.fingerprint,
        "archive_path": plan.archive,
        "datasets": [entry.name for entry in study.datasets],
        "methods": [entry.name for entry in study.methods],
        "budgets": list(dict.fromkeys(cell.annotation.budget for cell in plan.cells)),
        "seeds": list(study.seeds),
        "pretrain_per": study.pretrain_per,
        "headline": [f"{name}/{split}" for name, split in plan.headline],
        "show": list(study.show),
        "confidence": CONFIDENCE,
        "pools": {name: _pool(pool.counts) for name, pool in plan.pools.items()},
        "commits": sorted({row["commit"] for row in rows}),
        "runs": len({cell.key for cell in plan.cells}),
        "failed": failed,
        "missing": [
            plan.jobs[key].label for key in dict.fromkeys(cell.key for cell in plan.cells) if key not in found
        ],
        "table": _table(plan, rows),
        "comparisons": _comparisons(plan, rows),
        "rows": rows,
    }


def read_results(path: Path) -> dict[str, Any]:
    """``results.json`` of a study's folder, or that file; UserError when there is none."""
    file = path / RESULTS_FILE if path.is_dir() else path
    try:
        tree: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{file}: no results there; run 'pscl-hpc study' first") from None
    except ValueError:
        tree = None
    if not isinstance(tree, dict) or not {"study", "table", "comparisons", "rows"} <= tree.keys():
        raise UserError(f"{file}: is no result of a study; run 'pscl-hpc study' again")
    return tree


def _rows(plan: Plan, cell: Cell) -> Iterable[Row]:
    folder = plan.jobs[cell.key].folder
    try:
        evaluation = read_evaluation(folder)
        record = RunFolder.load(folder).record
    except UserError:
        return
    attempts = record.get("attempts") or [{}]
    times = read_times(folder)
    trunk = plan.jobs.get(cell.pretraining)
    if trunk is not None:
        times["pretrain"] = read_times(trunk.folder).get("pretrain", 0.0)
    for split, scores in evaluation["splits"].items():
        yield {
            "method": cell.method,
            "dataset": cell.annotation.dataset,
            "split": split,
            "budget": cell.annotation.budget,
            "references": list(cell.annotation.references),
            "seed": cell.seed,
            "mean_dice": scores["mean_dice"],
            "dice": scores["dice"],
            "mean_iou": scores["mean_iou"],
            "pixel_accuracy": scores["pixel_accuracy"],
            "images": scores["images"],
            "validation": record.get("best"),
            "seconds": times,
            "device": record.get("device", ""),
            "commit": str(attempts[-1].get("commit", "")),
            "folder": str(folder.relative_to(plan.study.folder)),
            "pretraining": str(trunk.folder.relative_to(plan.study.folder)) if trunk else "",
            "key": cell.key,
        }


def _pool(counts: Sequence[tuple[str, str, int]]) -> list[dict[str, Any]]:
    return [{"dataset": name, "split": split, "images": images} for name, split, images in counts]


def _places(plan: Plan, rows: Sequence[Row]) -> list[tuple[str, str, Any]]:
    """Data set, split and budget of every table, in the order of the study."""
    order = [entry.name for entry in plan.study.datasets]
    budgets = list(dict.fromkeys(cell.annotation.budget for cell in plan.cells))
    found = {(row["dataset"], row["split"], row["budget"]) for row in rows}
    return sorted(found, key=lambda place: (order.index(place[0]), place[1], budgets.index(place[2])))


def _select(rows: Sequence[Row], place: tuple[str, str, Any], method: str) -> list[Row]:
    return [
        row
        for row in rows
        if (row["dataset"], row["split"], row["budget"]) == place and row["method"] == method
    ]


def _table(plan: Plan, rows: Sequence[Row]) -> list[dict[str, Any]]:
    lines = []
    for place in _places(plan, rows):
        for entry in plan.study.methods:
            found = _select(rows, place, entry.name)
            if not found:
                continue
            lines.append(
                {
                    "dataset": place[0],
                    "split": place[1],
                    "budget": place[2],
                    "method": entry.name,
                    "runs": len(found),
                    "mean_dice": _spread(row["mean_dice"] for row in found),
                    "dice": {
                        name: _spread(row["dice"].get(name) for row in found) for name in found[0]["dice"]
                    },
                    "pixel_accuracy": _spread(row["pixel_accuracy"] for row in found),
                    "worst": _worst(found),
                    "values": [row["mean_dice"] for row in found],
                }
            )
    return lines


def _spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    found = spread(values)
    return None if found is None else dataclasses.asdict(found)


def _worst(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The annotated images with the lowest Dice, seeds averaged."""
    units = _units(rows, by_seed=False)
    if not units:
        return None
    name, value = min(units.items(), key=lambda item: (item[1], item[0]))
    return {"references": list(name), "mean_dice": value}


def _units(rows: Sequence[Row], *, by_seed: bool) -> dict[tuple[Any, ...], float]:
    """Mean Dice of each unit: annotated images, or seed."""
    values: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["mean_dice"] is not None:
            unit = (row["seed"],) if by_seed else tuple(row["references"])
            values.setdefault(unit, []).append(row["mean_dice"])
    return {unit: sum(found) / len(found) for unit, found in values.items()}


def _comparisons(plan: Plan, rows: Sequence[Row]) -> list[dict[str, Any]]:
    names = [entry.name for entry in plan.study.methods]
    baselines = [name for name in plan.study.compare if name in names]
    places = _places(plan, rows)
    lines = []
    for baseline in baselines:
        for method in names:
            if method == baseline:
                continue
            strata = {place: _pairs(rows, place, method, baseline) for place in places}
            for place in places:
                if strata[place]:
                    lines.append(_line(place, method, baseline, compare([strata[place]])))
            for budget in dict.fromkeys(place[2] for place in places):
                overall = [strata.get((name, split, budget), []) for name, split in plan.headline]
                # Over part of the data sets it would be another figure than its name says.
                if len(overall) > 1 and all(overall):
                    lines.append(_line(("", "", budget), method, baseline, compare(overall)))
    return lines


def _pairs(
    rows: Sequence[Row], place: tuple[str, str, Any], method: str, baseline: str
) -> list[tuple[float, float]]:
    """Dice of method and baseline for each unit, from runs that both have."""
    ours, theirs = _select(rows, place, method), _select(rows, place, baseline)
    common = {_repetition(row) for row in ours if row["mean_dice"] is not None}
    common &= {_repetition(row) for row in theirs if row["mean_dice"] is not None}
    by_seed = len({references for references, _ in common}) == 1
    first, second = (
        _units([row for row in found if _repetition(row) in common], by_seed=by_seed)
        for found in (ours, theirs)
    )
    return [(first[unit], second[unit]) for unit in first]


def _repetition(row: Row) -> tuple[tuple[str, ...], int]:
    return tuple(row["references"]), row["seed"]


def _line(place: tuple[str, str, Any], method: str, baseline: str, found: Comparison) -> dict[str, Any]:
    """``dataset`` and ``split`` are empty for the average over the headline scores."""
    return {
        "dataset": place[0],
        "split": place[1],
        "budget": place[2],
        "method": method,
        "baseline": baseline,
        **dataclasses.asdict(found),
    }

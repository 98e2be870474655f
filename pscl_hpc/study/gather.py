"""The results of a study from its run folders: every run, tables, comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from pscl_hpc.errors import UserError
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.results.statistics import CONFIDENCE, Stratum, compare, mean_by_unit, pair, spread
from pscl_hpc.results.study import (
    Compared,
    Failure,
    Line,
    Place,
    Row,
    Sampling,
    StudyResults,
    Unit,
    Worst,
)
from pscl_hpc.runs import RunFolder, now
from pscl_hpc.study.config import Budget
from pscl_hpc.study.plan import Cell, Plan
from pscl_hpc.study.pool import reference_of
from pscl_hpc.study.schedule import Outcome
from pscl_hpc.study.stage import configured_scores, made_from, read_times


def gather(plan: Plan, outcomes: dict[str, Outcome]) -> StudyResults:
    """The results of a study, complete or not.

    Args:
        plan: The study.
        outcomes: Of the jobs of this call, by key.
    """
    study = plan.study
    rows = [row for cell in plan.cells for row in _rows(plan, cell)]
    scored = {row.key for row in rows}
    return StudyResults(
        study=study.name,
        written=now(),
        archive=plan.fingerprint,
        archive_path=plan.archive,
        datasets=tuple(entry.name for entry in study.datasets),
        methods=tuple(entry.name for entry in study.methods),
        budgets=_budgets(plan),
        seeds=study.seeds,
        pretrain_per=study.pretrain_per,
        headline=tuple(f"{name}/{split}" for name, split in plan.headline),
        show=study.show,
        confidence=CONFIDENCE,
        pools={name: pool.parts for name, pool in plan.pools.items()},
        pools_without_own=tuple(name for name, pool in plan.pools.items() if pool.without_own),
        runs=len({cell.key for cell in plan.cells}),
        failed=tuple(
            Failure(
                job=plan.jobs[key].label,
                state=outcome.state,
                reason=outcome.reason,
                folder=str(plan.jobs[key].folder),
            )
            for key, outcome in outcomes.items()
            if outcome.state != "done"
        ),
        missing=tuple(
            plan.jobs[key].label
            for key in dict.fromkeys(cell.key for cell in plan.cells)
            if key not in scored
        ),
        table=tuple(_table(plan, rows)),
        comparisons=tuple(_comparisons(plan, rows)),
        rows=tuple(rows),
        sampling=tuple(_sampling(plan)),
    )


def _rows(plan: Plan, cell: Cell) -> Iterable[Row]:
    job = plan.jobs[cell.key]
    folder = job.folder
    evaluation = configured_scores(folder, plan.fingerprint, job.tests)
    if evaluation is None:
        return
    try:
        record = RunFolder.load(folder).record
    except UserError:
        return
    if not made_from(plan.fingerprint, record.get("archive")):
        return
    attempts = record.get("attempts") or [{}]
    best = record.get("best") or {}
    times = read_times(folder)
    trunk = plan.jobs.get(cell.pretraining)
    if trunk is not None:
        times["pretrain"] = read_times(trunk.folder).get("pretrain", 0.0)
    for split in job.tests:
        scores = evaluation.splits[split]
        yield Row(
            method=cell.method,
            dataset=cell.annotation.dataset,
            split=split,
            budget=cell.annotation.budget,
            references=cell.annotation.references,
            seed=cell.seed,
            mean_dice=scores.mean_dice,
            dice=scores.dice,
            mean_iou=scores.mean_iou,
            pixel_accuracy=scores.pixel_accuracy,
            fraction_error=evaluation.fraction_errors(split),
            images=scores.images,
            validation_dice=best.get("mean_dice"),
            step=best.get("step", 0),
            seconds=times,
            device=str(record.get("device", "")),
            commit=str(attempts[-1].get("commit", "")),
            folder=str(folder.relative_to(plan.study.folder)),
            pretraining=str(trunk.folder.relative_to(plan.study.folder)) if trunk else "",
            key=cell.key,
        )


def _sampling(plan: Plan) -> Iterable[Sampling]:
    trunks = dict.fromkeys((cell.method, cell.pretraining) for cell in plan.cells if cell.pretraining)
    for method, key in trunks:
        job = plan.jobs[key]
        assert isinstance(job.config, PretrainConfig)
        try:
            folder = RunFolder.load(job.folder)
            lines = folder.metrics()
        except UserError:
            continue
        steps = folder.setting("schedule.steps", int)
        first = _purity([line for line in lines if line["step"] <= steps / 4])
        last = _purity([line for line in lines if line["step"] > steps * 3 / 4])
        if last:
            reference = reference_of(job.config)
            yield Sampling(
                method=method,
                folder=str(job.folder.relative_to(plan.study.folder)),
                references=reference.ids if reference else (),
                first=first or (None,) * len(last),
                last=last,
            )


def _purity(lines: Sequence[dict[str, Any]]) -> tuple[float | None, ...]:
    """Mean of the logged purity of each scale; empty where none was logged."""
    found: list[float | None] = []
    for scale in itertools.count():
        key = f"scale{scale}/purity"
        if not any(key in line for line in lines):
            return tuple(found)
        values = [line[key] for line in lines if line.get(key) is not None]
        found.append(sum(values) / len(values) if values else None)
    return tuple(found)


def _budgets(plan: Plan) -> tuple[Budget, ...]:
    return tuple(dict.fromkeys(cell.annotation.budget for cell in plan.cells))


def _places(plan: Plan, rows: Sequence[Row]) -> list[Place]:
    """Data set, split and budget of every table, in the order of the study."""
    order = [entry.name for entry in plan.study.datasets]
    budgets = _budgets(plan)
    return sorted(
        {row.place for row in rows},
        key=lambda place: (order.index(place[0]), place[1], budgets.index(place[2])),
    )


def _select(rows: Sequence[Row], place: Place, method: str) -> list[Row]:
    return [row for row in rows if row.place == place and row.method == method]


def _table(plan: Plan, rows: Sequence[Row]) -> Iterable[Line]:
    for place in _places(plan, rows):
        for entry in plan.study.methods:
            found = _select(rows, place, entry.name)
            if found:
                yield Line(
                    method=entry.name,
                    dataset=place[0],
                    split=place[1],
                    budget=place[2],
                    runs=len(found),
                    mean_dice=spread(row.mean_dice for row in found),
                    dice={name: spread(row.dice.get(name) for row in found) for name in found[0].dice},
                    pixel_accuracy=spread(row.pixel_accuracy for row in found),
                    fraction_error=spread(
                        fmean(row.fraction_error.values()) if row.fraction_error else None for row in found
                    ),
                    worst=_worst(found),
                    validation_dice=spread(row.validation_dice for row in found),
                )


def _worst(rows: Sequence[Row]) -> Worst | None:
    units = mean_by_unit(rows)
    if not units:
        return None
    references, value = min(units.items(), key=lambda item: (item[1], item[0]))
    return Worst(references=references, mean_dice=value)


def _comparisons(plan: Plan, rows: Sequence[Row]) -> Iterable[Compared]:
    names = [entry.name for entry in plan.study.methods]
    places = _places(plan, rows)
    units = _units(plan)
    headline: dict[str, list[str]] = {}
    for name, split in plan.headline:
        headline.setdefault(name, []).append(split)
    for baseline in (name for name in plan.study.compare if name in names):
        for method in (name for name in names if name != baseline):
            for place in places:
                unit = units[place[0], place[2]]
                stratum = _stratum(rows, [place], method, baseline, unit)
                yield from _compared(place, method, baseline, [stratum], unit)
            for budget in dict.fromkeys(place[2] for place in places):
                # A mean over only some of the data sets would not be the mean of all headline scores.
                if len(plan.headline) < 2 or any((name, budget) not in units for name in headline):
                    continue
                kinds = {name: units[name, budget] for name in headline}
                strata = [
                    _stratum(rows, [(name, split, budget) for split in splits], method, baseline, kinds[name])
                    for name, splits in headline.items()
                ]
                unit = next(iter(kinds.values())) if len(set(kinds.values())) == 1 else "pairs"
                yield from _compared(("", "", budget), method, baseline, strata, unit)


def _units(plan: Plan) -> dict[tuple[str, Budget], Unit]:
    """The units of each data set and budget, by the plan: missing runs change nothing."""
    sets: dict[tuple[str, Budget], set[tuple[str, ...]]] = {}
    for cell in plan.cells:
        key = (cell.annotation.dataset, cell.annotation.budget)
        sets.setdefault(key, set()).add(cell.annotation.references)
    return {key: "seeds" if len(found) == 1 else "images" for key, found in sets.items()}


def _stratum(rows: Sequence[Row], places: Sequence[Place], method: str, baseline: str, unit: Unit) -> Stratum:
    """The pairs of one data set over some of its splits."""
    first, second = ([_select(rows, place, name) for place in places] for name in (method, baseline))
    return pair(first, second, by_seed=unit == "seeds")


def _compared(
    place: Place, method: str, baseline: str, strata: Sequence[Stratum], unit: Unit
) -> Iterable[Compared]:
    """The comparison over these strata; none where one of them has no pair."""
    if all(stratum.pairs for stratum in strata):
        yield Compared(
            method=method,
            baseline=baseline,
            dataset=place[0],
            split=place[1],
            budget=place[2],
            unit=unit,
            **dict(compare(strata)),
        )

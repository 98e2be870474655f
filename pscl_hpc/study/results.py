"""What a study found: every run, tables, comparisons."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from pscl_hpc.errors import UserError
from pscl_hpc.methods import ReferencedMethodConfig
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.report.study_results import (
    Compared,
    Failure,
    Line,
    Place,
    PoolPart,
    Row,
    Sampling,
    StudyResults,
    Unit,
    Worst,
)
from pscl_hpc.runs import RunFolder, now
from pscl_hpc.segmentation.summary import read_evaluation, spread
from pscl_hpc.study.config import Budget
from pscl_hpc.study.plan import Cell, Plan
from pscl_hpc.study.schedule import Outcome
from pscl_hpc.study.stage import has_scores, made_from, read_times
from pscl_hpc.study.statistics import CONFIDENCE, Comparison, Stratum, compare

Shared = tuple[str, ...]
"""What the runs of a pair share: annotated images; or the seed, as text."""


def gather(plan: Plan, outcomes: dict[str, Outcome]) -> StudyResults:
    """All that is known of a study, whether it is complete or not.

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
        pools_without_own=tuple(name for name, pool in plan.pools.items() if pool.without_own),
        pools={
            name: tuple(PoolPart(dataset=part[0], split=part[1], images=part[2]) for part in pool.counts)
            for name, pool in plan.pools.items()
        },
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
    try:
        evaluation = read_evaluation(folder)
        record = RunFolder.load(folder).record
    except UserError:
        return
    if not made_from(plan.fingerprint, record) or not has_scores(evaluation, plan.fingerprint, job.tests):
        return
    attempts = record.get("attempts") or [{}]
    best = record.get("best") or {}
    times = read_times(folder)
    trunk = plan.jobs.get(cell.pretraining)
    if trunk is not None:
        times["pretrain"] = read_times(trunk.folder).get("pretrain", 0.0)
    for split in job.tests:
        scores = evaluation["splits"][split]
        yield Row(
            method=cell.method,
            dataset=cell.annotation.dataset,
            split=split,
            budget=cell.annotation.budget,
            references=cell.annotation.references,
            seed=cell.seed,
            mean_dice=scores["mean_dice"],
            dice=scores["dice"],
            mean_iou=scores["mean_iou"],
            pixel_accuracy=scores["pixel_accuracy"],
            images=scores["images"],
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
            lines = RunFolder.load(job.folder).metrics()
        except UserError:
            continue
        steps = job.config.schedule.steps
        first = _purity([line for line in lines if line["step"] <= steps / 4])
        last = _purity([line for line in lines if line["step"] > steps * 3 / 4])
        if last:
            settings = job.config.method
            yield Sampling(
                method=method,
                folder=str(job.folder.relative_to(plan.study.folder)),
                references=settings.reference.ids if isinstance(settings, ReferencedMethodConfig) else (),
                first=first or (None,) * len(last),
                last=last,
            )


def _purity(lines: Sequence[dict[str, Any]]) -> tuple[float | None, ...]:
    """Mean of each scale's logged purity; empty where there is none."""
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
    found = {(row.dataset, row.split, row.budget) for row in rows}
    return sorted(found, key=lambda place: (order.index(place[0]), place[1], budgets.index(place[2])))


def _select(rows: Sequence[Row], place: Place, method: str) -> list[Row]:
    return [row for row in rows if (row.dataset, row.split, row.budget) == place and row.method == method]


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
                    worst=_worst(found),
                    validation_dice=spread(row.validation_dice for row in found),
                )


def _worst(rows: Sequence[Row]) -> Worst | None:
    units = _units(rows, by_seed=False)
    if not units:
        return None
    references, value = min(units.items(), key=lambda item: (item[1], item[0]))
    return Worst(references=references, mean_dice=value)


def _units(rows: Sequence[Row], *, by_seed: bool) -> dict[Shared, float]:
    """Mean Dice of each unit over its runs."""
    values: dict[Shared, list[float]] = {}
    for row in rows:
        if row.mean_dice is not None:
            unit = (str(row.seed),) if by_seed else row.references
            values.setdefault(unit, []).append(row.mean_dice)
    return {unit: sum(found) / len(found) for unit, found in values.items()}


def _comparisons(plan: Plan, rows: Sequence[Row]) -> Iterable[Compared]:
    names = [entry.name for entry in plan.study.methods]
    places = _places(plan, rows)
    units = _kinds(plan)
    headline: dict[str, list[str]] = {}
    for name, split in plan.headline:
        headline.setdefault(name, []).append(split)
    for baseline in (name for name in plan.study.compare if name in names):
        for method in (name for name in names if name != baseline):
            for place in places:
                unit = units[place[0], place[2]]
                stratum = _stratum(rows, [place], method, baseline, unit)
                if stratum.pairs:
                    yield _compared(place, method, baseline, compare([stratum]), unit)
            for budget in dict.fromkeys(place[2] for place in places):
                # Over part of the data sets it would be another figure than its name says.
                if len(plan.headline) < 2 or any((name, budget) not in units for name in headline):
                    continue
                kinds = {name: units[name, budget] for name in headline}
                overall = [
                    _stratum(rows, [(name, split, budget) for split in splits], method, baseline, kinds[name])
                    for name, splits in headline.items()
                ]
                if all(stratum.pairs for stratum in overall):
                    several = set(kinds.values())
                    unit = several.pop() if len(several) == 1 else "pairs"
                    yield _compared(("", "", budget), method, baseline, compare(overall), unit)


def _kinds(plan: Plan) -> dict[tuple[str, Budget], Unit]:
    """What the pairs of each data set and budget are, by what is planned: runs that are missing change nothing."""
    sets: dict[tuple[str, Budget], set[tuple[str, ...]]] = {}
    for cell in plan.cells:
        key = (cell.annotation.dataset, cell.annotation.budget)
        sets.setdefault(key, set()).add(cell.annotation.references)
    return {key: "seeds" if len(found) == 1 else "images" for key, found in sets.items()}


def _stratum(rows: Sequence[Row], places: Sequence[Place], method: str, baseline: str, unit: Unit) -> Stratum:
    """Dice of method and baseline for each unit of a data set, averaged over places, from the repetitions of all."""
    found = [[_select(rows, place, name) for place in places] for name in (method, baseline)]
    common = set.intersection(*(_repetitions(part) for side in found for part in side))
    by_seed = unit == "seeds"
    first, second = (
        _units(
            [row for part in side for row in part if (row.references, row.seed) in common], by_seed=by_seed
        )
        for side in found
    )
    images = [image for unit in first for image in unit]
    return Stratum(
        pairs=[(first[unit], second[unit]) for unit in first],
        weight=len(places),
        independent=by_seed or len(set(images)) == len(images),
    )


def _repetitions(rows: Sequence[Row]) -> set[tuple[tuple[str, ...], int]]:
    return {(row.references, row.seed) for row in rows if row.mean_dice is not None}


def _compared(place: Place, method: str, baseline: str, found: Comparison, unit: Unit) -> Compared:
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return Compared(
        method=method,
        baseline=baseline,
        dataset=place[0],
        split=place[1],
        budget=place[2],
        unit=unit,
        **values,
    )

"""Evaluated runs side by side: one table per collection and split, groups of runs that differ in reference and seed.

The unit of all means and comparisons is the annotated image (or set of images): runs that differ in their seed alone
share it and are averaged first.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.report.artefacts import Evaluation, SplitScores
from pscl_hpc.report.charts import DotRow, dots, slopes
from pscl_hpc.report.collect import RunData
from pscl_hpc.report.settings import Settings, comparable, differences, identity, settings_of
from pscl_hpc.report.starts import SCRATCH, starts
from pscl_hpc.segmentation.evaluate import PRIMARY_SPLIT
from pscl_hpc.segmentation.summary import Spread, spread


@dataclass(frozen=True)
class Row:
    """One evaluated run."""

    run: RunData
    evaluation: Evaluation
    scores: SplitScores
    """Of the table's split."""

    @property
    def reference(self) -> str:
        """The annotated images, in words."""
        return ", ".join(self.evaluation.references)

    @property
    def unit(self) -> tuple[str, ...]:
        """The annotated images, in whatever order they were named."""
        return tuple(sorted(self.evaluation.references))

    @property
    def seed(self) -> str:
        """The seed as it is written."""
        return str(self.run.setting("seed"))

    def values(self, classes: Sequence[str]) -> list[float | None]:
        """Dice per class, then mean Dice, mean IoU and pixel accuracy."""
        found = self.scores
        return [
            *(found.dice.get(name) for name in classes),
            found.mean_dice,
            found.mean_iou,
            found.pixel_accuracy,
        ]


@dataclass(frozen=True)
class Group:
    """Runs of one collection with the same start, number of references and settings."""

    start: str
    """``"from scratch"`` or the name of the pretraining."""
    pretrained: bool
    shots: int
    """Annotated images per run."""
    rows: tuple[Row, ...]
    spreads: tuple[Spread | None, ...]
    """Over the references, seeds averaged, in the columns of :meth:`Row.values`."""
    settings: str = ""
    """What other groups of the table have differently, in words."""

    @property
    def label(self) -> str:
        """Start and settings."""
        return f"{self.start}, {self.settings}" if self.settings else self.start

    @property
    def references(self) -> int:
        """Different annotated images (or sets of them)."""
        return len({row.unit for row in self.rows})

    @property
    def mean_dice(self) -> Spread | None:
        """Of the mean over classes."""
        return self.spreads[-3]


@dataclass(frozen=True)
class Comparison:
    """Pretrained against from scratch, on the references that both have."""

    scratch: Group
    pretrained: Group
    pairs: tuple[tuple[float, float], ...]
    """Mean Dice (scratch, pretrained) for each shared reference, averaged over the seeds that both have."""
    chart: str
    """The pairs as SVG; empty when there is none."""

    @property
    def gains(self) -> list[float]:
        """Pretrained minus from scratch."""
        return [after - before for before, after in self.pairs]


@dataclass(frozen=True)
class CollectionScores:
    """All runs of one collection that are scored on one split."""

    name: str
    split: str
    primary: bool
    """Whether this is the split that stands for the collection."""
    images: int
    classes: tuple[str, ...]
    """Scored classes."""
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]
    chart: str

    @property
    def alone(self) -> tuple[Group, ...]:
        """Groups that are in no comparison."""
        return tuple(
            group
            for group in self.groups
            if not any(group is found.scratch or group is found.pretrained for found in self.comparisons)
        )


def score_tables(runs: Sequence[RunData]) -> list[CollectionScores]:
    """Tables of all evaluated runs, by collection and split; a collection's primary split comes first."""
    rows: dict[str, dict[str, list[Row]]] = {}
    for run in runs:
        found = run.evaluation
        for split, scores in found.splits.items() if found is not None else ():
            assert found is not None
            rows.setdefault(found.collection, {}).setdefault(split, []).append(Row(run, found, scores))
    names = starts(runs)
    settings = {run.path: settings_of(run) for run in runs if run.evaluation is not None}
    tables: list[CollectionScores] = []
    for name in sorted(rows):
        primary = _primary(rows[name])
        for split in sorted(rows[name], key=lambda split: (split != primary, split)):
            members = _groups(rows[name][split], names, settings)
            tables.append(_table(f"dice{len(tables)}", (name, split), split == primary, members))
    return tables


def _primary(splits: dict[str, list[Row]]) -> str:
    """The split that stands for a collection: the test split, else the one that most runs give first."""
    if PRIMARY_SPLIT in splits:
        return PRIMARY_SPLIT
    votes = Counter(row.evaluation.primary for rows in splits.values() for row in rows)
    return min(splits, key=lambda split: (-votes[split], split))


_Members = list[tuple[Settings, "Group"]]


def _groups(rows: Sequence[Row], names: dict[Path, str], settings: dict[Path, Settings]) -> _Members:
    """Groups with the settings of their runs."""
    classes = _classes(rows)
    members: dict[tuple[int, bool, str, str], list[Row]] = {}
    for row in rows:
        path, start = row.run.path, names[row.run.path]
        key = (len(row.evaluation.references), start != SCRATCH, start, identity(settings[path]))
        members.setdefault(key, []).append(row)
    found = [settings[members[key][0].run.path] for key in sorted(members)]
    labels = differences(found)
    keys = [(*key[:3], label) for key, label in zip(sorted(members), labels, strict=True)]
    for place, key in enumerate(keys):
        if keys.count(key) > 1:  # They differ in more than a label names.
            labels[place] = f"{key[3]} (settings {keys[: place + 1].count(key)})".lstrip()
    return [
        (own, _group(key[:3], members[key], classes, label))
        for own, key, label in zip(found, sorted(members), labels, strict=True)
    ]


def _classes(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row.scores.dice))


def _table(chart: str, place: tuple[str, str], primary: bool, members: _Members) -> CollectionScores:
    groups = tuple(group for _, group in members)
    rows = [row for group in groups for row in group.rows]
    classes = _classes(rows)
    return CollectionScores(
        name=place[0],
        split=place[1],
        primary=primary,
        images=max(row.scores.images for row in rows),
        classes=classes,
        groups=groups,
        comparisons=tuple(_comparisons(members, chart)),
        chart=dots(chart, _dot_rows(classes, groups), title=f"Dice of each class on {place[0]}"),
    )


def _group(
    start: tuple[int, bool, str], rows: Sequence[Row], classes: tuple[str, ...], settings: str
) -> Group:
    rows = sorted(rows, key=lambda row: (row.reference, row.run.label))
    units: dict[tuple[str, ...], list[list[float | None]]] = {}
    for row in rows:
        units.setdefault(row.unit, []).append(row.values(classes))
    columns = zip(
        *([_mean(column) for column in zip(*unit, strict=True)] for unit in units.values()), strict=True
    )
    spreads = tuple(spread(column) for column in columns)
    return Group(start[2], start[1], start[0], tuple(rows), spreads, settings)


def _mean(values: Iterable[float | None]) -> float | None:
    found = spread(values)
    return None if found is None else found.mean


def _comparisons(members: _Members, name: str) -> Iterable[Comparison]:
    count = 0
    for one, scratch in members:
        for other, pretrained in members:
            if scratch.pretrained or not pretrained.pretrained or scratch.shots != pretrained.shots:
                continue
            if not comparable(one, other):
                continue
            pairs = _pairs(scratch, pretrained)
            count += 1
            ends = (scratch.start, pretrained.start)
            title = "Mean Dice of each reference, from scratch and pretrained"
            chart = slopes(f"{name}-pairs{count}", pairs, ends, title=title) if pairs else ""
            yield Comparison(scratch, pretrained, tuple(pairs), chart)


def _pairs(scratch: Group, pretrained: Group) -> list[tuple[float, float]]:
    """Mean Dice of each reference with both, over the seeds that both have."""
    before, after = _by_unit(scratch), _by_unit(pretrained)
    pairs = []
    for unit in after:
        seeds = before.get(unit, {}).keys() & after[unit].keys()
        if seeds:
            sides = [
                [statistics.fmean(side[unit][seed]) for seed in sorted(seeds)] for side in (before, after)
            ]
            pairs.append((statistics.fmean(sides[0]), statistics.fmean(sides[1])))
    return pairs


def _by_unit(group: Group) -> dict[tuple[str, ...], dict[str, list[float]]]:
    """Mean Dice of runs by reference and seed."""
    found: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for row in group.rows:
        if row.scores.mean_dice is not None:
            found.setdefault(row.unit, {}).setdefault(row.seed, []).append(row.scores.mean_dice)
    return found


def _dot_rows(classes: Sequence[str], groups: Sequence[Group]) -> list[DotRow]:
    labels = [*classes, "mean"] if len(classes) > 1 else list(classes)
    return [
        DotRow(
            label,
            tuple(
                tuple(v for row in group.rows if (v := row.values(classes)[column]) is not None)
                for group in groups
            ),
        )
        for column, label in enumerate(labels)
    ]

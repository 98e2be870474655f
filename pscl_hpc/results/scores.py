"""Evaluated runs side by side: a table for each collection and split, with groups of runs that may be averaged.

The unit of all means and comparisons is the annotated image (or set of images): runs that differ only in their seed
share it and are averaged first.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.results.evaluation import Evaluation, SplitScores
from pscl_hpc.results.runs import RunData
from pscl_hpc.results.settings import (
    CLASSIFIER,
    SCRATCH,
    Settings,
    comparable,
    differences,
    settings_of,
    starts,
)
from pscl_hpc.results.statistics import Estimate, Pair, Spread, compare, pair, spread
from pscl_hpc.segmentation.evaluate import PRIMARY_SPLIT


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
    def references(self) -> tuple[str, ...]:
        """The annotated images in alphabetical order."""
        return tuple(sorted(self.evaluation.references))

    @property
    def seed(self) -> str:
        """The seed as it is written."""
        return str(self.run.setting("seed"))

    @property
    def mean_dice(self) -> float | None:
        """Mean over the classes."""
        return self.scores.mean_dice

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
    """Runs of one collection with the same start, number of annotated images and settings."""

    start: str
    """``"from scratch"`` or the name of the pretraining."""
    shots: int
    """Annotated images per run."""
    rows: tuple[Row, ...]
    spreads: tuple[Spread | None, ...]
    """Over the annotated images, seeds averaged, in the columns of :meth:`Row.values`."""
    settings: str = ""
    """Settings in which other groups of the table differ, in words; if these are many, the name of its runs."""

    @property
    def pretrained(self) -> bool:
        """Whether the runs are fine-tunings of pretrained weights."""
        return self.start != SCRATCH and not self.start.startswith(CLASSIFIER)

    @property
    def began(self) -> str:
        """``start``, or the published weights of a network that no run pretrained."""
        init = self.rows[0].run.setting("model.init") if self.rows else ""
        if self.start != SCRATCH or init in ("", "random"):
            return self.start
        return "from ImageNet weights" if init == "imagenet" else f"from weights {init}"

    @property
    def label(self) -> str:
        """Start and settings."""
        return f"{self.began}, {self.settings}" if self.settings else self.began

    @property
    def references(self) -> int:
        """Number of different annotated images (or sets of them)."""
        return len({row.references for row in self.rows})

    @property
    def mean_dice(self) -> Spread | None:
        """Of the mean over classes."""
        return self.spreads[-3]


@dataclass(frozen=True)
class Comparison:
    """Pretrained against from scratch, on the annotated images and seeds that both have."""

    scratch: Group
    pretrained: Group
    pairs: tuple[Pair, ...]
    """Mean Dice (pretrained, scratch) for each shared annotated image, seeds averaged."""
    gain: Estimate | None
    """Pretrained minus from scratch; None without pairs."""

    @property
    def means(self) -> tuple[float, float]:
        """Mean Dice over the pairs from scratch and pretrained."""
        pretrained, scratch = (statistics.fmean(side) for side in zip(*self.pairs, strict=True))
        return scratch, pretrained


@dataclass(frozen=True)
class CollectionScores:
    """All runs of one collection that are scored on one split."""

    name: str
    split: str
    primary: bool
    """Whether this split represents the collection."""
    images: int
    classes: tuple[str, ...]
    """Scored classes."""
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def alone(self) -> tuple[Group, ...]:
        """Groups that are in no comparison."""
        compared = [group for found in self.comparisons for group in (found.scratch, found.pretrained)]
        return tuple(group for group in self.groups if not any(group is other for other in compared))


def score_tables(runs: Sequence[RunData]) -> list[CollectionScores]:
    """Tables of all evaluated runs, by collection and split; a collection's primary split comes first."""
    rows: dict[str, dict[str, list[Row]]] = {}
    settings: dict[Path, Settings] = {}
    for run in runs:
        if run.evaluation is not None:
            settings[run.path] = settings_of(run)
            for split, scores in run.evaluation.splits.items():
                row = Row(run, run.evaluation, scores)
                rows.setdefault(run.evaluation.collection, {}).setdefault(split, []).append(row)
    names = starts(runs)
    tables = []
    for name in sorted(rows):
        primary = _primary(rows[name])
        for split in sorted(rows[name], key=lambda split: (split != primary, split)):
            found = rows[name][split]
            classes = tuple(dict.fromkeys(label for row in found for label in row.scores.dice))
            members = _groups(found, classes, names, settings)
            tables.append(
                CollectionScores(
                    name=name,
                    split=split,
                    primary=split == primary,
                    images=max(row.scores.images for row in found),
                    classes=classes,
                    groups=tuple(group for _, group in members),
                    comparisons=tuple(_comparisons(members)),
                )
            )
    return tables


def _primary(splits: dict[str, list[Row]]) -> str:
    """The split that represents a collection: the test split, else the one that most runs put first."""
    if PRIMARY_SPLIT in splits:
        return PRIMARY_SPLIT
    votes = Counter(row.evaluation.split for rows in splits.values() for row in rows)
    return min(splits, key=lambda split: (-votes[split], split))


def _groups(
    rows: Sequence[Row], classes: Sequence[str], names: dict[Path, str], settings: dict[Path, Settings]
) -> list[tuple[Settings, Group]]:
    """Groups with the settings of their runs."""
    members: dict[tuple[int, bool, str, str], list[Row]] = {}
    for row in rows:
        start, identity = names[row.run.path], repr(settings[row.run.path])
        key = (len(row.evaluation.references), start != SCRATCH, start, identity)
        members.setdefault(key, []).append(row)
    keys = sorted(members)
    found = [settings[members[key][0].run.path] for key in keys]
    groups: list[tuple[Settings, Group]] = []
    seen: Counter[tuple[object, ...]] = Counter()
    labels = differences(found, [_common_name(members[key]) for key in keys])
    for own, key, label in zip(found, keys, labels, strict=True):
        # A setting that only one of two groups has is not in its label.
        seen[*key[:3], label] += 1
        count = seen[*key[:3], label]
        words = f"{label} (settings {count})".lstrip() if count > 1 else label
        groups.append((own, _group(key[2], key[0], members[key], classes, words)))
    return groups


def _common_name(rows: Sequence[Row]) -> str:
    """The name that the configurations of all runs have; empty if they have different ones."""
    names = {str(row.run.setting("name")) for row in rows}
    return names.pop() if len(names) == 1 else ""


def _group(start: str, shots: int, rows: Sequence[Row], classes: Sequence[str], settings: str) -> Group:
    rows = sorted(rows, key=lambda row: (row.reference, row.run.label))
    units: dict[tuple[str, ...], list[list[float | None]]] = {}
    for row in rows:
        units.setdefault(row.references, []).append(row.values(classes))
    averaged = ([_mean(column) for column in zip(*unit, strict=True)] for unit in units.values())
    spreads = tuple(spread(column) for column in zip(*averaged, strict=True))
    return Group(start, shots, tuple(rows), spreads, settings)


def _mean(values: Iterable[float | None]) -> float | None:
    found = spread(values)
    return None if found is None else found.mean


def _comparisons(members: Sequence[tuple[Settings, Group]]) -> Iterable[Comparison]:
    for one, scratch in members:
        for other, pretrained in members:
            if scratch.start != SCRATCH or not pretrained.pretrained or scratch.shots != pretrained.shots:
                continue
            if comparable(one, other):
                stratum = pair([pretrained.rows], [scratch.rows])
                gain = compare([stratum]).gain if stratum.pairs else None
                yield Comparison(scratch, pretrained, tuple(stratum.pairs), gain)

"""Evaluated runs side by side: one table per collection, groups of runs that differ only in their reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pscl_hpc.report.artefacts import Evaluation, SplitScores
from pscl_hpc.report.charts import DotRow, dots, slopes
from pscl_hpc.report.collect import RunData
from pscl_hpc.segmentation.summary import Spread, spread

SCRATCH = "from scratch"


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
    """Runs of one collection with the same start and number of references."""

    start: str
    """``"from scratch"`` or the name of the pretraining."""
    pretrained: bool
    shots: int
    """Annotated images per run."""
    rows: tuple[Row, ...]
    spreads: tuple[Spread | None, ...]
    """In the columns of :meth:`Row.values`."""

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
    """Mean Dice (scratch, pretrained) for each shared reference."""
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
    """Whether this is the split that stands for the runs."""
    images: int
    classes: tuple[str, ...]
    """Scored classes."""
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]
    chart: str


def score_tables(runs: Sequence[RunData]) -> list[CollectionScores]:
    """Tables of all evaluated runs, by collection and split; a collection's primary split comes first."""
    tables: dict[tuple[str, bool, str], list[Row]] = {}
    for run in runs:
        found = run.evaluation
        for split, scores in found.splits.items() if found is not None else ():
            assert found is not None
            key = (found.collection, split != found.primary, split)
            tables.setdefault(key, []).append(Row(run, found, scores))
    starts = _starts(runs)
    return [_table(f"dice{index}", key, tables[key], starts) for index, key in enumerate(sorted(tables))]


def _table(
    chart: str, key: tuple[str, bool, str], rows: list[Row], starts: dict[str, str]
) -> CollectionScores:
    classes = tuple(dict.fromkeys(name for row in rows for name in row.scores.dice))
    members: dict[tuple[int, bool, str], list[Row]] = {}
    for row in rows:
        found = row.evaluation
        start = (len(found.references), bool(found.pretrained), starts[found.pretrained])
        members.setdefault(start, []).append(row)
    groups = tuple(_group(start, members[start], classes) for start in sorted(members))
    return CollectionScores(
        name=key[0],
        split=key[2],
        primary=not key[1],
        images=max(row.scores.images for row in rows),
        classes=classes,
        groups=groups,
        comparisons=tuple(_comparisons(groups, chart)),
        chart=dots(chart, _dot_rows(classes, groups), title=f"Dice of each class on {key[0]}"),
    )


def _group(start: tuple[int, bool, str], rows: Sequence[Row], classes: tuple[str, ...]) -> Group:
    rows = sorted(rows, key=lambda row: (row.reference, row.run.label))
    columns = zip(*(row.values(classes) for row in rows), strict=True)
    return Group(start[2], start[1], start[0], tuple(rows), tuple(spread(column) for column in columns))


def _comparisons(groups: Sequence[Group], name: str) -> Iterable[Comparison]:
    count = 0
    for scratch in groups:
        for pretrained in groups:
            if scratch.pretrained or not pretrained.pretrained or scratch.shots != pretrained.shots:
                continue
            # A reference may be used with several seeds: only runs of the same seed are a pair.
            before = {(row.reference, row.run.setting("seed")): row.scores.mean_dice for row in scratch.rows}
            pairs = [
                (old, row.scores.mean_dice)
                for row in pretrained.rows
                if (old := before.get((row.reference, row.run.setting("seed")))) is not None
                and row.scores.mean_dice is not None
            ]
            count += 1
            ends = (scratch.start, pretrained.start)
            title = "Mean Dice of each reference, from scratch and pretrained"
            chart = slopes(f"{name}-pairs{count}", pairs, ends, title=title) if pairs else ""
            yield Comparison(scratch, pretrained, tuple(pairs), chart)


def _starts(runs: Sequence[RunData]) -> dict[str, str]:
    """How runs began, in words, by the ``pretrained`` of their evaluation; different ones have different words."""
    places = {
        run.evaluation.pretrained: run.locate(run.evaluation.pretrained)
        for run in runs
        if run.evaluation is not None
    }
    names = dict.fromkeys(places, "")
    folders = {run.path.resolve(): run for run in runs if run.kind == "pretrain"}
    for pretrained, path in places.items():
        folder = path.parent if path.suffix else path
        run = folders.get(folder.resolve())
        known = f"pretrained by {run.method}" if run is not None else ""
        if not pretrained:
            names[pretrained] = SCRATCH
        elif run is None or known in names.values():
            names[pretrained] = f"{known or 'pretrained'} ({run.label if run else folder.name})"
        else:
            names[pretrained] = known
    return names


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

"""The top of the page: what was done and what it gained, with the uncertainty of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.report.study_text import spread_text
from pscl_hpc.results.runs import RunData
from pscl_hpc.results.scores import CollectionScores, Comparison
from pscl_hpc.results.statistics import CONFIDENCE


@dataclass(frozen=True)
class Tile:
    """One large number."""

    value: str
    unit: str
    label: str
    note: str


@dataclass(frozen=True)
class Headline:
    """The top of the page."""

    title: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
    warnings: tuple[str, ...]


def headline(runs: Sequence[RunData], tables: Sequence[CollectionScores]) -> Headline:
    """What was done, scored and gained."""
    pretraining = [run for run in runs if run.kind == "pretrain"]
    finetuning = [run for run in runs if run.kind == "finetune"]
    primary = [table for table in tables if table.primary]
    sentences = [*_pretraining(pretraining), *_finetuning(finetuning, tables)]
    sentences += [text for table in primary for text in _results(table)]
    warnings = [f"{run.label}: {note}" for run in runs for note in run.notes if run.status != "done"]
    warnings += [damage for run in runs for damage in run.damage]
    kinds = ["pretraining"] if pretraining else []
    if finetuning:
        one = all(len(run.setting("references", [])) == 1 for run in finetuning)
        kinds.append(f"segmentation from {'one annotated image' if one else 'few annotated images'}")
    title = " and ".join(kinds) or "runs"
    tiles = tuple(tile for table in primary for tile in _tiles(table))
    return Headline(title[:1].upper() + title[1:], tuple(sentences), tiles, tuple(warnings))


def comparison_sentence(name: str, comparison: Comparison, images: int) -> str:
    """One comparison in words: the numbers and their interval."""
    before, after, gain = comparison.scratch, comparison.pretrained, comparison.gain
    if gain is None:
        return (
            f"{name}: mean Dice {spread_text(before.mean_dice)} {before.began} and {spread_text(after.mean_dice)} "
            f"{after.label}, but on different annotated images or seeds, so the two cannot be compared."
        )
    scratch, pretrained = comparison.means
    pairs = len(comparison.pairs)
    wins = sum(ours > theirs for ours, theirs in comparison.pairs)
    text = (
        f"{name}: mean Dice {scratch:.3f} {before.began}, {pretrained:.3f} {after.label} ({_signed(gain.value)}), "
        f"scored on {_count(images, 'image')} over {_count(pairs, 'choice')} of annotated images"
    )
    if pairs == 1:
        return text + "; one choice is not enough to tell an effect from chance."
    text += f"; better for {wins} of {pairs}"
    if gain.low is None or gain.high is None:
        return text + " (no interval: the runs share annotated images)."
    text += f", {100 * CONFIDENCE:.0f}% interval {_signed(gain.low)} to {_signed(gain.high)}"
    return text + (", so the difference may be chance." if gain.low <= 0 <= gain.high else ".")


def _pretraining(runs: Sequence[RunData]) -> list[str]:
    if not runs:
        return []
    if len(runs) > 1:
        methods = sorted({run.method for run in runs})
        return [f"{len(runs)} pretrainings ({', '.join(methods)}) on unlabelled micrographs."]
    run = runs[0]
    batch = run.setting("batch_size", None)
    archive = Path(str(run.setting("data.archive"))).name
    text = f"Pretrained by {run.method} for {_count(run.steps, 'step')}"
    text += f" of {_count(batch, 'image')}" if isinstance(batch, int) else ""
    text += f" on unlabelled micrographs of {archive}" if archive else ""
    references = run.setting("method.reference.ids", [])
    if isinstance(references, list) and references:
        text += f"; patches were sampled with {_count(len(references), 'annotated image')}"
    return [text + "."]


def _finetuning(runs: Sequence[RunData], tables: Sequence[CollectionScores]) -> list[str]:
    if not runs:
        return []
    shots = sorted({group.shots for table in tables for group in table.groups})
    text = _count(len(runs), "fine-tuning run")
    if shots:
        each = " or ".join(str(shot) for shot in shots)
        text += f", each from {each} annotated image{'s' if shots != [1] else ''}"
    evaluated = sum(run.evaluation is not None for run in runs)
    if evaluated < len(runs):
        text += f"; {evaluated} of them evaluated"
    return [text + "."]


def _results(table: CollectionScores) -> list[str]:
    name = _table_name(table)
    single = len(table.alone) == 1 and not table.comparisons
    why = "There is nothing on this page to compare it with."
    if not single:
        why = "It differs from the others on this page in more than its pretraining."
    return [
        *(comparison_sentence(name, found, table.images) for found in table.comparisons),
        *(
            f"{name}: mean Dice {spread_text(group.mean_dice)} {group.label}, {_count(len(group.rows), 'run')}, scored on "
            f"{_count(table.images, 'image')}. {why}"
            for group in table.alone
        ),
    ]


def _tiles(table: CollectionScores) -> list[Tile]:
    name = _table_name(table)
    images = _count(table.images, f"{table.split} image".lstrip())
    tiles = []
    for found in table.comparisons:
        if found.gain is not None:
            scratch, pretrained = found.means
            label = f"mean Dice on {name}, {found.scratch.began} and {found.pretrained.label}"
            note = f"{_count(len(found.pairs), 'annotated image')}, {images}"
            value = f"{scratch:.3f} \N{RIGHTWARDS ARROW} {pretrained:.3f}"
            tiles.append(Tile(value, _signed(found.gain.value), label, note))
    for group in table.alone:
        note = f"{_count(len(group.rows), 'run')}, {images}"
        tiles.append(Tile(spread_text(group.mean_dice), "", f"mean Dice on {name}, {group.label}", note))
    return tiles


def _table_name(table: CollectionScores) -> str:
    return table.name if table.split == "test" else f"{table.name} ({table.split})"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}".replace(",", "\N{NARROW NO-BREAK SPACE}")

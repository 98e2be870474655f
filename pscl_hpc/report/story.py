"""The page in three lines: what was done, and what it brought, in words that promise no more than was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.report.collect import RunData
from pscl_hpc.report.scores import CollectionScores, Comparison, Group


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
    sentences = [*_pretraining(pretraining), *_finetuning(finetuning, tables), *_results(tables)]
    warnings = [f"{run.label}: {note}" for run in runs for note in run.notes if run.status != "done"]
    warnings += [damage for run in runs for damage in run.damage]
    kinds = []
    if pretraining:
        kinds.append("pretraining")
    if finetuning:
        shots = [len(run.setting("references", [])) for run in finetuning]
        few = "one annotated image" if set(shots) == {1} else "few annotated images"
        kinds.append(f"segmentation from {few}")
    title = " and ".join(kinds) or "runs"
    return Headline(title[:1].upper() + title[1:], tuple(sentences), tuple(_tiles(tables)), tuple(warnings))


def comparison_sentence(name: str, comparison: Comparison, images: int) -> str:
    """One comparison in words: the numbers, then how far they can be trusted."""
    before, after = comparison.scratch, comparison.pretrained
    pairs = comparison.pairs
    if not pairs:
        return (
            f"{name}: mean Dice {_mean(before)} from scratch and {_mean(after)} {after.label}, but on different "
            "references or seeds, so the two cannot be compared."
        )
    scratch, pretrained = (statistics.fmean(side) for side in zip(*pairs, strict=True))
    gains = comparison.gains
    text = (
        f"{name}: mean Dice {scratch:.3f} from scratch, {pretrained:.3f} {after.label} "
        f"({_signed(pretrained - scratch)}), scored on {_count(images, 'image')} with {_count(len(pairs), 'reference')}"
    )
    if len(pairs) == 1:
        return text + "; one reference cannot tell an effect from chance."
    wins = sum(gain > 0 for gain in gains)
    spread = statistics.stdev(gains)
    text += f"; better on {wins} of {len(pairs)}, standard deviation of the difference {spread:.3f}"
    if abs(statistics.fmean(gains)) < spread:
        text += ", so the difference is smaller than its own spread"
    return text + "."


def _pretraining(runs: Sequence[RunData]) -> list[str]:
    if not runs:
        return []
    if len(runs) > 1:
        methods = sorted({run.method for run in runs})
        return [f"{len(runs)} pretrainings ({', '.join(methods)}) on unlabelled micrographs."]
    run = runs[0]
    batch = run.setting("batch_size", None)
    archive = Path(str(run.setting("data.archive"))).name
    text = f"Pretrained a U-Net by {run.method} for {_count(run.steps, 'step')}"
    text += f" of {_count(batch, 'image')}" if isinstance(batch, int) else ""
    text += f" on unlabelled micrographs of {archive}" if archive else ""
    references = run.setting("method.reference.ids", [])
    if isinstance(references, list) and references:
        text += f"; patches were sampled with {_count(len(references), 'annotated reference')}"
    return [text + "."]


def _finetuning(runs: Sequence[RunData], tables: Sequence[CollectionScores]) -> list[str]:
    if not runs:
        return []
    shots = sorted({group.shots for table in tables for group in table.groups})
    each = " or ".join(str(shot) for shot in shots)
    text = _count(len(runs), "fine-tuning run")
    text = text[:1].upper() + text[1:]
    if shots:
        text += f", each from {each} annotated image{'s' if shots != [1] else ''}"
    evaluated = sum(run.evaluation is not None for run in runs)
    if evaluated < len(runs):
        text += f"; {evaluated} of them {'is' if evaluated == 1 else 'are'} evaluated"
    return [text + "."]


def _results(tables: Sequence[CollectionScores]) -> list[str]:
    sentences = []
    for table in tables:
        if not table.primary:
            continue
        name = _table_name(table)
        sentences += [comparison_sentence(name, found, table.images) for found in table.comparisons]
        for group in table.alone:
            many = _count(len(group.rows), "run")
            sentences.append(
                f"{name}: mean Dice {_mean(group)} {group.label}, {many}, scored on "
                f"{_count(table.images, 'image')}. Nothing to compare it with is on this page."
            )
    return sentences


def _tiles(tables: Sequence[CollectionScores]) -> list[Tile]:
    tiles: list[Tile] = []
    for table in tables:
        if not table.primary:
            continue
        name = _table_name(table)
        images = _count(table.images, f"{table.split} image".lstrip())
        for found in table.comparisons:
            if not found.pairs:
                continue
            scratch, pretrained = (statistics.fmean(side) for side in zip(*found.pairs, strict=True))
            label = f"mean Dice on {name}, from scratch and {found.pretrained.label}"
            note = f"{_count(len(found.pairs), 'reference')}, {images}"
            value = f"{scratch:.3f} \N{RIGHTWARDS ARROW} {pretrained:.3f}"
            tiles.append(Tile(value, _signed(pretrained - scratch), label, note))
        for group in table.alone:
            note = f"{_count(len(group.rows), 'run')}, {images}"
            tiles.append(Tile(_mean(group), "", f"mean Dice on {name}, {group.label}", note))
    return tiles


def _table_name(table: CollectionScores) -> str:
    return table.name if table.split == "test" else f"{table.name} ({table.split})"


def _mean(group: Group) -> str:
    found = group.mean_dice
    if found is None:
        return "unknown"
    return f"{found.mean:.3f}" + (f" ± {found.std:.3f}" if found.std is not None else "")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}".replace(",", "\N{NARROW NO-BREAK SPACE}")

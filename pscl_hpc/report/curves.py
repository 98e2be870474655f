"""Which logged numbers go into which chart. Charts follow from the form of the keys, so that terms of any method appear."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pscl_hpc.report.charts import Series, curves
from pscl_hpc.results.evaluation import number
from pscl_hpc.results.runs import RunData

_SCALE = re.compile(r"^scale(\d+)/(.+)$")
_BOOKKEEPING = {"step", "time", "epoch", "attempt"}


@dataclass(frozen=True)
class LegendEntry:
    """Name and colour of a curve."""

    label: str
    slot: int


@dataclass(frozen=True)
class Chart:
    """A chart with title, caption and legend."""

    title: str
    caption: str
    legend: tuple[LegendEntry, ...]
    svg: str


@dataclass(frozen=True)
class _Family:
    title: str
    caption: str
    limits: tuple[float | None, float | None] = (None, None)


_FAMILIES = {
    "loss": _Family(
        "Losses",
        "They should fall and then level off. After a sudden jump, or if a line never moves, check the learning rate.",
    ),
    "similarity": _Family(
        "Similarity of patches",
        "Solid: a patch and the same patch in the other view. Dashed: the most similar patch of another class. "
        "In training the dashed lines should fall and the solid ones stay high.",
    ),
    "purity": _Family(
        "Purity of sampled patches",
        "Share of sampled patches that are on the class of their template, where masks are known. "
        "1 is perfect; low values mean that sampling mixes classes.",
        (0.0, 1.02),
    ),
    "templates": _Family(
        "Templates",
        "Number of patches of the annotated image that are used as templates. Fewer than configured: a class is "
        "rare or absent in this image.",
        (0.0, None),
    ),
    "probe": _Family(
        "How well features predict the annotation",
        "Share of pixels of annotated training images whose class is predicted by the most similar pixels, mean over "
        "classes. It is measured only, never trained on. It should rise above its first value and above chance; "
        "methods that train the encoder alone improve the bottleneck only.",
        (0.0, 1.02),
    ),
    "rank": _Family(
        "Rank of the features",
        "RankMe: the number of directions that the features of random pixels use. A fall towards 1 is a collapse: all "
        "places look the same to the network.",
        (0.0, None),
    ),
    "dice": _Family(
        "Dice on validation images",
        "Overlap with the annotation, 1 is perfect. The checkpoint with the best mean is kept; test images are not used "
        "for this choice.",
        (0.0, 1.02),
    ),
    "agreement": _Family(
        "IoU and pixel accuracy on validation images",
        "The same errors lower IoU more than Dice. Accuracy is high wherever the background is large: do not judge by "
        "it alone.",
        (0.0, 1.02),
    ),
    "gradient_norm": _Family(
        "Gradient norm",
        "Before clipping. Rare peaks are harmless, a steady rise is not.",
        (0.0, None),
    ),
    "lr": _Family("Learning rate", "As scheduled.", (0.0, None)),
    "images_per_second": _Family(
        "Images per second", "Speed of training. If it falls slowly, check the machine.", (0.0, None)
    ),
    "checkpoint_seconds": _Family(
        "Seconds to write a checkpoint", "The last one, written during training.", (0.0, None)
    ),
    "memory_mb": _Family("Memory in MB", "Peak memory of the training process or device.", (0.0, None)),
}
_OTHER = _Family("", "Logged by the method.")


def run_charts(run: RunData, prefix: str) -> list[Chart]:
    """All charts of one run's ``metrics.jsonl``; ``prefix`` makes their ids unique on the page."""
    scales = 1 + max(
        (int(m.group(1)) for line in run.metrics for key in line if (m := _SCALE.match(key))), default=-1
    )
    groups: dict[str, list[str]] = {}
    keys = dict.fromkeys(key for line in run.metrics for key in line if number(line[key]) is not None)
    for key in (key for key in keys if key not in _BOOKKEEPING):
        groups.setdefault(_family(key), []).append(key)
    marks = restarts(run)
    order = [*_FAMILIES, *sorted(groups.keys() - _FAMILIES.keys())]
    charts: list[Chart] = []
    for family in order:
        if family in groups:
            series = _series(run.metrics, groups[family], family, scales)
            charts.append(_chart(f"{prefix}-{len(charts)}", family, series, marks))
    return charts


def restarts(run: RunData) -> list[float]:
    """Steps from which a later attempt resumed the run."""
    steps = {number(attempt.get("first_step")) for attempt in run.attempts[1:]}
    return sorted(step for step in steps if step)


def comparison(
    name: str, runs: Sequence[tuple[RunData, int]], key: str, legend: Sequence[str]
) -> Chart | None:
    """One curve per run of the same metric; each run comes with the colour of its group."""
    series = [_curve(run.metrics, key, run.label, slot) for run, slot in runs]
    series = [one for one in series if one.values]
    if not series:
        return None
    family = _FAMILIES[_family(key)]
    svg = curves(name, series, title=f"{family.title}, one line per run", limits=family.limits)
    return Chart(
        "Mean Dice on validation images, one line per run",
        family.caption,
        tuple(LegendEntry(label, slot) for slot, label in enumerate(legend)),
        svg,
    )


def scale_name(index: int, scales: int) -> str:
    """The resolution of a decoder scale relative to the image, in words."""
    stride = 2 ** (scales - 1 - index)
    return "full resolution" if stride == 1 else f"1/{stride} resolution"


def _family(key: str) -> str:
    last = key.rpartition("/")[2]
    if key.startswith("val/dice/") or last == "mean_dice":
        return "dice"
    if key.startswith("val/"):
        return "agreement"
    if last in ("positive", "negative"):
        return "similarity"
    if last.endswith("loss") or last == "ce":
        return "loss"
    return last


def _series(lines: Sequence[dict[str, Any]], keys: Sequence[str], family: str, scales: int) -> list[Series]:
    series = []
    other = scales  # colours 0..scales-1 belong to the scales on every chart
    for key in sorted(keys, key=lambda key: (key not in ("loss", "val/mean_dice"), not _SCALE.match(key))):
        match = _SCALE.match(key)
        if match:
            slot = int(match.group(1))
        elif key in ("loss", "val/mean_dice") or len(keys) == 1:
            slot = -1
        else:
            slot = other
            other += 1
        series.append(_curve(lines, key, _label(key, family, scales), slot))
    return series


def _curve(lines: Sequence[dict[str, Any]], key: str, label: str, slot: int) -> Series:
    """The known values of a key."""
    points = [(line["step"], value) for line in lines if (value := number(line.get(key))) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return Series(label, steps, values, slot, dashed=key.endswith("/negative"))


_LABELS = {
    "loss": "total",
    "ce": "cross entropy",
    "dice_loss": "Dice loss",
    "image/loss": "whole image",
    "val/mean_dice": "mean",
    "val/mean_iou": "mean IoU",
    "val/pixel_accuracy": "pixel accuracy",
    "lr": "decoder and head",
    "encoder/lr": "encoder",
}


def _label(key: str, family: str, scales: int) -> str:
    match = _SCALE.match(key)
    if match:
        return scale_name(int(match.group(1)), scales)
    if key.startswith("val/dice/"):
        return key.removeprefix("val/dice/")
    if key in _LABELS:
        return _LABELS[key]
    return key.removesuffix("/" + family).replace("_", " ").replace("/", " ")


def _chart(name: str, family: str, series: list[Series], marks: Sequence[float]) -> Chart:
    words = _FAMILIES.get(family, _OTHER)
    title = words.title or family[:1].upper() + family[1:].replace("_", " ")
    svg = curves(name, series, title=title, restarts=marks, limits=words.limits)
    # A dashed curve has the colour of the solid one that it belongs to; the caption explains dashes.
    entries = tuple(LegendEntry(one.label, one.slot) for one in series if not one.dashed)
    return Chart(title, words.caption, entries if len(entries) > 1 else (), svg)

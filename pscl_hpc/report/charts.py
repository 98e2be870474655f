"""Charts as SVG text for an HTML page: matplotlib draws, the style sheet of the page sets the colours.

Every colour is drawn as a placeholder and replaced by a CSS variable, so that one chart suits light and dark pages.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, RULE = "#01fe00", "#01fe01", "#01fe02"
SLOTS = tuple(f"#01fd{index:02x}" for index in range(8))
"""Placeholders of the line colours ``--s0`` .. ``--s7``."""
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"} | {
    colour: f"--s{index}" for index, colour in enumerate(SLOTS)
}


@dataclass(frozen=True)
class Palette:
    """The colours of a drawing."""

    ink: str
    muted: str
    rule: str
    slots: tuple[str, ...]


ON_PAGE = Palette(INK, MUTED, RULE, SLOTS)
"""Placeholders, which :func:`to_svg` replaces by the variables of the style sheet."""
ON_PAPER = Palette(
    "#1b1f24",
    "#5b6470",
    "#e3e5e8",
    ("#0072b2", "#d55e00", "#00835f", "#a8478a", "#8a6d00", "#2f8fd0", "#5b4ab5", "#7a7f87"),
)
"""The light colours of the style sheet, for figures in separate files."""
STEPS = [1, 2, 2.5, 5, 10]
"""Steps between ticks, times a power of ten."""
BINS = 240
"""Longer curves are averaged into this number of bins; a band shows the range in each bin."""
_WIDTH, _HEIGHT = 370.0, 215.0
"""In CSS pixels, about the width of a chart on the page, so that text has its nominal size."""


@dataclass(frozen=True)
class Series:
    """One curve. Values may be NaN."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    slot: int
    """Index into the line colours; -1 is the text colour."""
    dashed: bool = False


@dataclass(frozen=True)
class DotRow:
    """One row of a dot chart: a few groups of values on a common axis."""

    label: str
    groups: tuple[tuple[float, ...], ...]


def curves(
    name: str,
    series: Sequence[Series],
    *,
    title: str,
    restarts: Sequence[float] = (),
    limits: tuple[float | None, float | None] = (None, None),
) -> str:
    """Curves over optimiser steps.

    Args:
        name: Unique on the page; keeps the ids of several charts apart.
        series: The curves in the order of drawing.
        title: For screen readers.
        restarts: Steps at which a run was resumed, marked by vertical lines.
        limits: Fixed ends of the value axis; None leaves an end to the data.
    """
    with chart_axes(name, _HEIGHT) as (figure, axes):
        for one in series:
            steps, values, low, high = _binned(one)
            colour = SLOTS[one.slot % len(SLOTS)] if one.slot >= 0 else INK
            if low is not None and high is not None:
                axes.fill_between(steps, low, high, color=colour, alpha=0.14, linewidth=0)
            marker = "o" if len(steps) <= 12 else ""
            axes.plot(
                steps, values, color=colour, linewidth=1.6, marker=marker, markersize=4,
                linestyle=(0, (4, 2.2)) if one.dashed else "-",
            )  # fmt: skip
        for step in restarts:
            axes.axvline(step, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                "restart", (step, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
                textcoords="offset points", ha="center", va="bottom", fontsize=9.5, color=MUTED,
            )  # fmt: skip
        axes.set_xlabel("step", color=MUTED)
        axes.margins(y=0.08)
        axes.set_ylim(*limits)
        if limits == (0.0, None):
            # Otherwise a constant value would lie on the upper edge.
            axes.set_ylim(top=1.1 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        return to_svg(figure, name, title)


def dots(name: str, rows: Sequence[DotRow], *, title: str) -> str:
    """Dice values of several groups; group g has line colour g. A row without values says so."""
    height = max(_HEIGHT, 42.0 + 32.0 * len(rows))
    with chart_axes(name, height) as (figure, axes):
        row_axes(axes, [shorten(row.label) for row in rows])
        for index, row in enumerate(rows):
            offsets = np.linspace(-0.2, 0.2, len(row.groups)) if len(row.groups) > 1 else np.zeros(1)
            for group, values in enumerate(row.groups):
                draw_values(axes, index + float(offsets[group]), values, SLOTS[group % len(SLOTS)])
            if not any(row.groups):
                axes.annotate("in no mask", (0.02, index), va="center", fontsize=10, color=MUTED)
        axes.set_xlim(0, 1)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_xlabel("Dice", color=MUTED)
        return to_svg(figure, name, title)


def slopes(name: str, pairs: Sequence[tuple[float, float]], ends: tuple[str, str], *, title: str) -> str:
    """One line per pair of Dice values, from the first to the second; line colour 2 rises, 1 falls or stays."""
    with chart_axes(name, _HEIGHT) as (figure, axes):
        for before, after in pairs:
            colour = SLOTS[2] if after > before else SLOTS[1]
            axes.plot([0, 1], [before, after], "o-", color=colour, linewidth=1.6, markersize=6, mew=0)
        axes.set_xlim(-0.35, 1.35)
        axes.set_xticks([0, 1], [shorten(end, 26) for end in ends])
        axes.tick_params(axis="x", length=0, colors=INK)
        axes.margins(y=0.12)
        axes.set_ylabel("mean Dice", color=MUTED)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        return to_svg(figure, name, title)


def row_axes(axes: Axes, labels: Sequence[str], palette: Palette = ON_PAGE) -> None:
    """Axes whose rows, from the top, are named."""
    style_axes(axes, palette)
    axes.set_yticks(range(len(labels)), list(labels))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", color=palette.rule, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, colors=palette.ink)
    axes.spines["left"].set_visible(False)


def draw_values(axes: Axes, y: float, values: Sequence[float], colour: str) -> None:
    """Values on a row: small dots for single values, a line for their range, a large dot for their mean."""
    if len(values) > 1:
        axes.plot([min(values), max(values)], [y, y], color=colour, linewidth=1.2, alpha=0.5)
        axes.plot(values, [y] * len(values), "o", color=colour, markersize=4, alpha=0.55, mew=0)
    if values:
        axes.plot([float(np.mean(values))], [y], "o", color=colour, markersize=8.5, mew=0, clip_on=False)


@contextmanager
def house_style(name: str) -> Iterator[None]:
    """Fonts of all charts; the same ``name`` and data give the same bytes."""
    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "text.parse_math": False,
            "font.family": ["DejaVu Sans"],
            "font.size": 11.5,
        }
    ):
        yield


def style_axes(axes: Axes, palette: Palette = ON_PAGE) -> None:
    """No box, pale grid lines, small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.rule)
    axes.tick_params(colors=palette.muted, length=3, width=0.8)
    axes.grid(axis="y", color=palette.rule, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    )


@contextmanager
def chart_axes(name: str, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of the width of a chart, ``height`` CSS pixels high, and its axes."""
    with house_style(name):
        figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        style_axes(axes)
        yield figure, axes


def _binned(
    series: Series,
) -> tuple[list[float], list[float], list[float] | None, list[float] | None]:
    steps = np.asarray(series.steps, np.float64)
    values = np.asarray(series.values, np.float64)
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if len(steps) <= BINS:
        return steps.tolist(), values.tolist(), None, None
    parts = np.array_split(np.arange(len(steps)), BINS)
    return (
        [float(steps[part].mean()) for part in parts],
        [float(values[part].mean()) for part in parts],
        [float(values[part].min()) for part in parts],
        [float(values[part].max()) for part in parts],
    )


def shorten(text: str, length: int = 24) -> str:
    """A label of at most ``length`` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def to_svg(figure: Figure, name: str, title: str) -> str:
    """A figure drawn in :data:`ON_PAGE` as SVG text; ``title`` is for screen readers."""
    buffer = io.StringIO()
    # No date and no creator: the same data give the same bytes.
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text)
    if view is None:
        raise ValueError("matplotlib wrote an SVG without viewBox")
    label = html.escape(title, quote=True)
    head = f'<svg viewBox="{view.group(1)}" role="img" aria-label="{label}">'
    # A function: in a replacement text, backslashes of the title would be read as groups.
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    text = _own_ids(text, name)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r">\s+<", "><", text).strip()


def _own_ids(text: str, name: str) -> str:
    """Keep only ids that are referred to, and make them unique on the page."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(
        r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", text
    )
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)

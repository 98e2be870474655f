"""Figures of a study: scores of all runs, comparisons with their intervals, Dice by budget."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pscl_hpc.report.charts import (
    ON_PAGE,
    ON_PAPER,
    STEPS,
    Palette,
    draw_values,
    house_style,
    row_axes,
    style_axes,
    to_svg,
)
from pscl_hpc.report.curves import Chart
from pscl_hpc.report.study_text import comparison_scores, overall
from pscl_hpc.results.study import Compared, Place, StudyResults

_WIDTH, _ROW, _FRAME = 370.0, 27.0, 52.0
"""CSS pixels: width of a panel, height of a row, height of everything around the rows."""
_DPI = 144
_TITLE = 40
"""Characters in a line of a panel's title."""
_CURVES = 7
"""Rows that the axes of a panel with curves are as high as."""


@dataclass(frozen=True)
class Panel:
    """One drawing, on the page and in the figure for papers."""

    title: str
    """In the figure for papers."""
    heading: str
    """On the page."""
    caption: str
    rows: int
    draw: Callable[[Axes, Palette], None]

    def chart(self, name: str) -> Chart:
        """The drawing for the page; ``name`` is unique there."""
        with house_style(name):
            figure = _figure([self.rows], 1)
            self.draw(figure.subplots(), ON_PAGE)
            return Chart(
                self.heading, self.caption, (), to_svg(figure, name, f"{self.heading}: {self.title}")
            )


def score_panel(results: StudyResults, place: Place) -> Panel:
    """Mean Dice of every run of one table."""
    methods = [line.method for line in results.table if line.place == place]

    def draw(axes: Axes, palette: Palette) -> None:
        row_axes(axes, methods, palette)
        for index, method in enumerate(methods):
            values = [
                row.mean_dice
                for row in results.rows
                if row.place == place and row.method == method and row.mean_dice is not None
            ]
            draw_values(axes, index, values, _colour(results, method, palette))
        axes.set_xlim(0, 1)
        axes.set_xlabel("mean Dice", color=palette.muted)

    budget = f", budget {place[2]}" if len(results.budgets) > 1 else ""
    return Panel(
        f"{place[0]}, {place[1]}{budget}",
        "Mean Dice of every run",
        "Small dots: single runs. Large dots: their mean. The longer the line, the more depends on the annotated image.",
        len(methods),
        draw,
    )


def comparison_panel(results: StudyResults, lines: Sequence[Compared]) -> Panel:
    """Share of the Dice error removed, of one of the lists of :func:`overall`."""

    def draw(axes: Axes, palette: Palette) -> None:
        row_axes(axes, [line.method for line in lines], palette)
        axes.axvline(0, color=palette.muted, linewidth=1)
        for index, line in enumerate(lines):
            found = line.error_removed
            assert found is not None
            colour = palette.slots[2] if found.value > 0 else palette.slots[1]
            if found.low is not None and found.high is not None:
                axes.plot([100 * found.low, 100 * found.high], [index, index], color=colour, linewidth=1.6)
            axes.plot([100 * found.value], [index], "o", color=colour, markersize=7, mew=0)
        axes.margins(x=0.08)
        # A very wide interval must not make all others unreadable.
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -150), min(high, 110))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:g} %".replace("-", "\N{MINUS SIGN}"))
        )
        axes.set_xlabel("Dice error removed", color=palette.muted)

    baseline, scores = lines[0].baseline, comparison_scores(results, lines)
    return Panel(
        f"against {baseline}, {scores}",
        f"Dice error removed against {baseline}",
        f"Dots: share of 1 - Dice that is removed, over {scores}. "
        f"Lines: {100 * results.confidence:.0f}% interval; none where pairs are too few or have "
        "annotated images in common. Left of 0 is worse.",
        len(lines),
        draw,
    )


def budget_panel(results: StudyResults, dataset: str, split: str) -> Panel | None:
    """Mean Dice by annotation budget, one curve per method; None for a single budget."""
    found = [line for line in results.table if (line.dataset, line.split) == (dataset, split)]
    order = sorted({line.budget for line in found}, key=_annotation)
    if len(order) < 2:
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        style_axes(axes, palette)
        for method in results.methods:
            points = [
                (order.index(line.budget), line.mean_dice.mean)
                for line in found
                if line.method == method and line.mean_dice is not None
            ]
            axes.plot(
                [x for x, _ in sorted(points)], [y for _, y in sorted(points)], "o-",
                color=_colour(results, method, palette), linewidth=1.6, markersize=5, mew=0, label=method,
            )  # fmt: skip
        axes.set_xticks(range(len(order)), [str(budget) for budget in order])
        axes.set_xlabel("annotated images", color=palette.muted)
        axes.set_ylabel("mean Dice", color=palette.muted)
        axes.margins(x=0.06, y=0.1)
        # Below the axes, where it cannot cover a curve.
        axes.legend(
            frameon=False, fontsize=9.5, labelcolor=palette.ink, loc="upper left", bbox_to_anchor=(0, -0.2)
        )

    caption = "Mean over runs. square-N is one square of N pixels of one image."
    rows = _CURVES + round(0.6 * len(results.methods))
    return Panel(f"{dataset}, {split}", "Mean Dice by annotation", caption, rows, draw)


def figure_files(results: StudyResults) -> dict[str, bytes]:
    """The figure as ``figure.svg`` and ``figure.png``; nothing where there are no scores."""
    files = {}
    with house_style("study"):
        figure = paper_figure(results)
        if figure is None:
            return {}
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        for name, metadata in (("figure.svg", empty), ("figure.png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=name.rpartition(".")[2], dpi=_DPI, metadata=metadata)
            files[name] = buffer.getvalue()
    return files


def paper_figure(results: StudyResults) -> Figure | None:
    """All panels on white: scores of each data set's first budget, the overall comparisons, Dice by budget."""
    panels = [score_panel(results, place) for place in results.first_places]
    for baseline in results.baselines:
        panels += [comparison_panel(results, lines) for lines in overall(results, baseline)]
    for dataset, split, _ in results.first_places:
        curves = budget_panel(results, dataset, split)
        panels += [curves] if curves else []
    if not panels:
        return None
    columns = min(3, len(panels))
    figure = _figure([panel.rows for panel in panels], columns)
    figure.set_facecolor("white")
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        panel.draw(axes, ON_PAPER)
        axes.set_title(textwrap.fill(panel.title, _TITLE), fontsize=11.5, color=ON_PAPER.ink, loc="left")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _figure(rows: Sequence[int], columns: int) -> Figure:
    """A figure with a panel for each entry of ``rows``, as high as its rows need."""
    height = sum(max(rows[at : at + columns]) * _ROW + _FRAME for at in range(0, len(rows), columns))
    figure = Figure(figsize=(columns * _WIDTH / 72, height / 72), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _annotation(budget: int | str) -> tuple[int, int]:
    """From the least to the most annotation: squares, numbers of images, all."""
    if isinstance(budget, int):
        return 1, budget
    return (2, 0) if budget == "all" else (0, int(budget.partition("-")[2]))


def _colour(results: StudyResults, method: str, palette: Palette) -> str:
    """A method has the same colour everywhere."""
    return palette.slots[results.methods.index(method) % len(palette.slots)]

"""Figures of a study: scores of all runs, comparisons with their intervals, Dice by budget."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pscl_hpc.report.charts import ON_PAGE, ON_PAPER, Palette, house_style, style_axes, to_svg
from pscl_hpc.report.curves import Chart
from pscl_hpc.report.study_results import Compared, Place, StudyResults
from pscl_hpc.study.config import square_of

_WIDTH, _ROW, _FRAME = 370.0, 27.0, 52.0
"""CSS pixels: width of a panel, height of a method's row, height of what surrounds the rows."""
_DPI = 144
_OVERALL = ("", "")


def score_chart(results: StudyResults, place: Place, name: str) -> Chart:
    """Mean Dice of every run of one table."""
    figure = _figure(name, [len(_methods(results, place))], 1)
    with house_style(name):
        _draw_scores(figure.subplots(), results, place, ON_PAGE)
        svg = to_svg(figure, name, f"Mean Dice on {place[0]} {place[1]}")
    return Chart(
        "Mean Dice of every run",
        "Small dots: one run each. Large dots: their mean. A longer line: more depends on the annotated image.",
        (),
        svg,
    )


def comparison_chart(results: StudyResults, lines: Sequence[Compared], name: str) -> Chart:
    """Share of the Dice error removed, of one of the lists of :func:`overall`."""
    baseline = lines[0].baseline
    figure = _figure(name, [len(lines)], 1)
    with house_style(name):
        _draw_comparison(figure.subplots(), lines, ON_PAGE)
        svg = to_svg(figure, name, f"Dice error removed against {baseline}")
    return Chart(
        f"Dice error removed against {baseline}",
        f"Dots: share of 1 - Dice that is gone, over {what(results, lines)}. "
        f"Lines: {100 * results.confidence:.0f}% interval; none where pairs are too few or have "
        "annotated images in common. Left of 0 is worse.",
        (),
        svg,
    )


def budget_chart(results: StudyResults, dataset: str, split: str, name: str) -> Chart | None:
    """Mean Dice by annotation budget, one curve per method; None for a single budget."""
    found = [line for line in results.table if (line.dataset, line.split) == (dataset, split)]
    budgets = [budget for budget in results.budgets if any(line.budget == budget for line in found)]
    if len(budgets) < 2:
        return None
    figure = _figure(name, [7], 1)
    with house_style(name):
        _draw_budgets(figure.subplots(), results, dataset, split, ON_PAGE)
        svg = to_svg(figure, name, f"Mean Dice by annotation on {dataset} {split}")
    return Chart(
        "Mean Dice by annotation",
        "Mean over runs. square-N is one square of N pixels of one image.",
        (),
        svg,
    )


def overall(results: StudyResults, baseline: str) -> list[list[Compared]]:
    """The comparisons that stand for the study, a list of methods for each place.

    They are those over all headline scores, of the first budget that all data sets have; where there is none, those of
    each headline score, of the first budget of its data set.
    """
    found: dict[Place, list[Compared]] = {}
    for line in results.comparisons:
        if line.baseline == baseline and line.error_removed is not None:
            found.setdefault((line.dataset, line.split, line.budget), []).append(line)
    places: list[Place] = [(*_OVERALL, budget) for budget in results.budgets]
    common = [found[place] for place in places if place in found]
    if common:
        return common[:1]
    first = {f"{place[0]}/{place[1]}": place for place in results.first_places}
    named = [first[text] for text in results.headline if text in first]
    return [found[place] for place in named if place in found]


def what(results: StudyResults, lines: Sequence[Compared]) -> str:
    """The scores of an overall comparison in words."""
    first = lines[0]
    scores = f"{first.dataset} {first.split}" if first.dataset else "the mean of all headline scores"
    return scores + _budget_text(results, first.budget)


def _budget_text(results: StudyResults, budget: int | str) -> str:
    return f", budget {budget}" if len(results.budgets) > 1 else ""


def paper_figure(results: StudyResults) -> Figure | None:
    """All panels on white, for files: scores of each data set's first budget, then the overall comparisons."""
    places = results.first_places
    compared = [(baseline, lines) for baseline in results.baselines for lines in overall(results, baseline)]
    curves = [
        place
        for place in places
        if sum(line.place[:2] == place[:2] for line in results.table) > len(_methods(results, place))
    ]
    rows = [len(_methods(results, place)) for place in places] + [len(lines) for _, lines in compared]
    rows += [7] * len(curves)
    if not rows:
        return None
    columns = min(3, len(rows))
    figure = _figure("paper", rows, columns)
    figure.set_facecolor("white")
    grid = figure.subplots(-(-len(rows) // columns), columns, squeeze=False)
    panels = iter(grid.ravel())
    for place in places:
        axes = next(panels)
        _draw_scores(axes, results, place, ON_PAPER)
        axes.set_title(
            f"{place[0]}, {place[1]}{_budget_text(results, place[2])}",
            fontsize=11.5,
            color=ON_PAPER.ink,
            loc="left",
        )
    for baseline, lines in compared:
        axes = next(panels)
        _draw_comparison(axes, lines, ON_PAPER)
        axes.set_title(
            f"against {baseline}, {what(results, lines)}", fontsize=11.5, color=ON_PAPER.ink, loc="left"
        )
    for place in curves:
        axes = next(panels)
        _draw_budgets(axes, results, place[0], place[1], ON_PAPER)
        axes.set_title(f"{place[0]}, {place[1]}", fontsize=11.5, color=ON_PAPER.ink, loc="left")
    for axes in panels:
        axes.set_visible(False)
    return figure


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


def _figure(name: str, rows: Sequence[int], columns: int) -> Figure:
    lines = -(-len(rows) // columns)
    heights = [max(rows[line * columns : (line + 1) * columns]) * _ROW + _FRAME for line in range(lines)]
    with house_style(name):
        figure = Figure(figsize=(columns * _WIDTH / 72, sum(heights) / 72), layout="constrained")
        FigureCanvasAgg(figure)
    return figure


def _methods(results: StudyResults, place: Place) -> list[str]:
    return [line.method for line in results.table if line.place == place]


def _draw_scores(axes: Axes, results: StudyResults, place: Place, palette: Palette) -> None:
    methods = _methods(results, place)
    _row_axes(axes, methods, palette)
    for index, method in enumerate(methods):
        values = [
            row.mean_dice
            for row in results.rows
            if (row.dataset, row.split, row.budget) == place
            and row.method == method
            and row.mean_dice is not None
        ]
        if not values:
            continue
        colour = _colour(results, method, palette)
        axes.plot([min(values), max(values)], [index, index], color=colour, linewidth=1.2, alpha=0.5)
        axes.plot(values, [index] * len(values), "o", color=colour, markersize=4, alpha=0.55, mew=0)
        axes.plot([float(np.mean(values))], [index], "o", color=colour, markersize=8.5, mew=0)
    axes.set_xlim(0, 1)
    axes.set_xlabel("mean Dice", color=palette.muted)


def _draw_comparison(axes: Axes, lines: Sequence[Compared], palette: Palette) -> None:
    _row_axes(axes, [line.method for line in lines], palette)
    axes.axvline(0, color=palette.muted, linewidth=1)
    for index, line in enumerate(lines):
        assert line.error_removed is not None
        found = line.error_removed
        colour = palette.slots[2] if found.value > 0 else palette.slots[1]
        if found.low is not None and found.high is not None:
            axes.plot([100 * found.low, 100 * found.high], [index, index], color=colour, linewidth=1.6)
        axes.plot([100 * found.value], [index], "o", color=colour, markersize=7, mew=0)
    axes.margins(x=0.08)
    # One wild interval must not squeeze all others.
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -150), min(high, 110))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g} %".replace("-", "\N{MINUS SIGN}"))
    )
    axes.set_xlabel("Dice error removed", color=palette.muted)


def _draw_budgets(axes: Axes, results: StudyResults, dataset: str, split: str, palette: Palette) -> None:
    style_axes(axes, palette)
    found = [line for line in results.table if (line.dataset, line.split) == (dataset, split)]
    budgets = [budget for budget in results.budgets if any(line.budget == budget for line in found)]
    # Squares are less than an image, all is most.
    squares = sorted((budget for budget in budgets if square_of(budget)), key=square_of)
    counts = sorted(budget for budget in budgets if isinstance(budget, int))
    order = [*squares, *counts, *(budget for budget in budgets if budget == "all")]
    for method in results.methods:
        points = {
            line.budget: line.mean_dice.mean
            for line in found
            if line.method == method and line.mean_dice is not None
        }
        places = [place for place, budget in enumerate(order) if budget in points]
        axes.plot(
            places, [points[order[place]] for place in places], "o-", color=_colour(results, method, palette),
            linewidth=1.6, markersize=5, mew=0, label=method,
        )  # fmt: skip
    axes.set_xticks(range(len(order)), [str(budget) for budget in order])
    axes.set_xlabel("annotated images", color=palette.muted)
    axes.set_ylabel("mean Dice", color=palette.muted)
    axes.margins(x=0.06, y=0.1)
    axes.legend(
        frameon=False, fontsize=9.5, labelcolor=palette.ink, ncols=2 if len(results.methods) > 4 else 1
    )


def _row_axes(axes: Axes, labels: Sequence[str], palette: Palette) -> None:
    style_axes(axes, palette)
    axes.set_yticks(range(len(labels)), list(labels))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", color=palette.rule, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, colors=palette.ink)
    axes.spines["left"].set_visible(False)


def _colour(results: StudyResults, method: str, palette: Palette) -> str:
    """A method has the same colour everywhere."""
    return palette.slots[results.methods.index(method) % len(palette.slots)]

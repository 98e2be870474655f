"""Charts of measurements: phase fractions of all images, and distributions of diameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from pscl_hpc.metallography.record import Histogram
from pscl_hpc.report.charts import INK, MUTED, STEPS, chart_axes, row_axes, shorten, to_svg


@dataclass(frozen=True)
class FractionRow:
    """One phase: a value per image and the interval of their mean, as shares."""

    label: str
    colour: str
    """Hex colour of the class, as in the pictures."""
    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


def fractions(name: str, rows: Sequence[FractionRow], *, title: str) -> str:
    """Small dots for images, a large dot for the mean, a thick line for its interval; in percent."""
    with chart_axes(name, max(150.0, 52.0 + 42.0 * len(rows))) as (figure, axes):
        row_axes(axes, [shorten(row.label) for row in rows])
        for index, row in enumerate(rows):
            shift = np.linspace(-0.16, 0.16, len(row.values)) if len(row.values) > 1 else [0.0]
            axes.plot(
                [100 * value for value in row.values], [index + one for one in shift], "o",
                color=MUTED, markersize=3.5, alpha=0.55, mew=0,
            )  # fmt: skip
            if row.low is not None and row.high is not None:
                ends = [100 * row.low, 100 * row.high]
                axes.plot(ends, [index, index], color=INK, linewidth=2.4)
            axes.plot(
                [100 * row.mean], [index], "o", color=row.colour, markersize=9.5, mew=1.2, mec=INK, clip_on=False
            )  # fmt: skip
        right = axes.get_xlim()[1]
        axes.set_xlim(-0.04 * right, right)  # a dot at 0 does not cover the names
        axes.set_xlabel("fraction of the area, %", color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        return to_svg(figure, name, title)


def diameters(name: str, histogram: Histogram, colour: str, unit: str) -> str:
    """Distribution of equivalent diameters; percent of the particles in each bin."""
    with chart_axes(name, 190.0) as (figure, axes):
        edges = np.array(histogram.edges)
        axes.bar(
            edges[:-1], [100 * share for share in histogram.shares], width=np.diff(edges), align="edge",
            color=colour, edgecolor=INK, linewidth=0.6,
        )  # fmt: skip
        axes.set_xlim(0, edges[-1])
        axes.set_xlabel(f"equivalent diameter, {unit}", color=MUTED)
        axes.set_ylabel("% of particles", color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        return to_svg(figure, name, f"Distribution of the diameter of {histogram.phase}")

"""The figure of docs/results.md: every run with one annotated image on all alloy sets, from the result files.

python -m bench.results_figure [docs/images/results.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.tables.common import ROOT, load
from pscl_hpc.report.charts import ON_PAPER, draw_values, house_style, row_axes

STUDIES = ("cpu-study-one-image", "cpu-study-other-sets", "cpu-study-further-sets")
METHODS = {
    "imagenet-self-training": "default recipe",
    "frozen-features": "pixel classifier on a frozen ImageNet encoder",
    "pixel-classifier": "pixel classifier on classical filters",
}
"""Names in the study and in the figure, from the top."""
COLOURS = dict(zip(METHODS, (ON_PAPER.slots[0], ON_PAPER.slots[1], ON_PAPER.slots[-1]), strict=True))
OFFSET = 0.24
"""Distance between methods, in rows."""


def main(out: Path) -> None:
    rows = [row for name in STUDIES for row in load(name)["result"]["rows"]]
    places = list(dict.fromkeys((row["dataset"], row["split"]) for row in rows))
    names = [f"{dataset} {split}" if split != "test" else dataset for dataset, split in places]
    with house_style("results"):
        figure = Figure(figsize=(9.5, 5.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        row_axes(axes, names, ON_PAPER)
        for line, place in enumerate(places):
            for index, method in enumerate(METHODS):
                values = [
                    row["mean_dice"]
                    for row in rows
                    if row["method"] == method and (row["dataset"], row["split"]) == place
                ]
                draw_values(axes, line + OFFSET * (index - 1), values, COLOURS[method])
        for method, name in METHODS.items():
            axes.plot([], [], "o", color=COLOURS[method], markersize=8.5, mew=0, label=name)
        axes.legend(
            loc="lower center",
            bbox_to_anchor=(0.4, 1.0),
            ncols=3,
            frameon=False,
            fontsize=10.5,
            handletextpad=0.1,
        )
        axes.set_xlim(0, 1)
        axes.set_xlabel("mean Dice of the test images", color=ON_PAPER.muted)
        figure.set_facecolor("white")
        figure.savefig(out, dpi=150, metadata={"Software": None})
    print(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "results.png")

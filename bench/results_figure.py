"""The figure of docs/results.md: every run of the study of one annotated image, from its result file.

python -m bench.results_figure [docs/images/results.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.tables.common import ROOT, load
from pscl_hpc.report.charts import ON_PAPER, draw_values, house_style, row_axes

METHODS = {
    "imagenet-self-training": "default recipe",
    "imagenet": "  without self-training",
    "unet-pscl": "U-Net after PSCL",
    "unet-scratch": "U-Net from scratch",
    "frozen-features": "pixels: frozen ImageNet",
    "pixel-classifier": "pixels: classical filters",
}
"""Names in the study and in the figure, from the top."""
LIMITS = (0.3, 1.0)


def main(out: Path) -> None:
    rows = load("cpu-study-one-image")["result"]["rows"]
    places = list(dict.fromkeys((row["dataset"], row["split"]) for row in rows))
    with house_style("results"):
        figure = Figure(figsize=(11, 2.7), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, place in zip(figure.subplots(1, len(places), sharey=True), places, strict=True):
            row_axes(axes, list(METHODS.values()), ON_PAPER)
            for index, method in enumerate(METHODS):
                values = [
                    row["mean_dice"]
                    for row in rows
                    if row["method"] == method and (row["dataset"], row["split"]) == place
                ]
                draw_values(axes, index, values, ON_PAPER.slots[0 if index == 0 else -1])
            axes.set_xlim(LIMITS)
            axes.set_xlabel("mean Dice", color=ON_PAPER.muted)
            axes.set_title(" ".join(place), fontsize=11.5, color=ON_PAPER.ink, loc="left")
        figure.set_facecolor("white")
        figure.savefig(out, dpi=150, metadata={"Software": None})
    print(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "results.png")

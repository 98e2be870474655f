"""The figure at the top of the README and the scores of the demo, from a finished `make demo`.

python -m bench.demo_figure [runs/demo] [docs/images/demo.png]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.patches import Patch

from bench.record import record
from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.palette import class_colours, hex_colour
from pscl_hpc.segmentation.pictures import picture_name, read_labels

RUNS = {"from-scratch": "U-Net from scratch", "finetune": "from ImageNet weights"}
ROWS = {"test": 2, "test_ood": 1}
"""Images of each split, of different production batches where there are several."""


def main(demo: Path, out: Path) -> None:
    config = RunFolder.load(demo / "finetune").config
    assert isinstance(config, FinetuneConfig)
    with Archive(config.data.archive) as archive:
        reference = archive.find(config.references[0])
        collection = archive.collections[reference.dataset]
        colours = class_colours(len(collection.classes), collection.background)
        chosen: list[ImageRecord] = []
        for split, count in ROWS.items():
            records = archive.select(datasets=[reference.dataset], splits=[split])
            chosen += list({each.production_batch: each for each in reversed(records)}.values())[:count]
        columns = ["micrograph", "true classes", *RUNS.values()]
        figure, axes = plt.subplots(len(chosen), 4, figsize=(10, 2.7 * len(chosen)), layout="compressed")
        for row, shown in enumerate(chosen):
            image = archive.read_unit(shown.index)[0]
            pictures: list[npt.NDArray[np.uint8]] = [colours[archive.read_mask(shown.index)]]
            for run in RUNS:
                file = demo / run / "predictions" / shown.split / f"{picture_name(shown.id)}.png"
                pictures.append(colours[read_labels(file)])
            axes[row, 0].imshow(image, cmap="gray", vmin=0, vmax=1)
            label = "out of distribution" if shown.split == "test_ood" else shown.split
            axes[row, 0].text(
                -0.04, 0.5, label, rotation=90, va="center", ha="right", transform=axes[row, 0].transAxes
            )
            for column, picture in enumerate(pictures, start=1):
                axes[row, column].imshow(picture, interpolation="nearest")
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=11)
    for axis in axes.flat:
        axis.set_axis_off()
    handles = [Patch(color=hex_colour(c), label=n) for c, n in zip(colours, collection.classes, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, facecolor="white")
    found = {}
    for run, name in RUNS.items():
        splits = json.loads((demo / run / "evaluation.json").read_text())["splits"]
        found[name] = {key: {k: splits[key][k] for k in ("images", "mean_dice", "dice")} for key in splits}
    print(record("demo", {"models": found}, command="make demo; python -m bench.demo_figure"))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        Path(arguments[0] if arguments else "runs/demo"),
        Path(arguments[1] if len(arguments) > 1 else "docs/images/demo.png"),
    )

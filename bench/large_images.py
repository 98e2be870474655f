"""Effect of `resize: auto` on images with three times as many pixels a side.

    python -m bench.large_images ARCHIVE FOLDER [--image uhcs_steel/uhcs0599] [--factor 3]

All annotated images of the collection are enlarged (grey levels bicubically, masks by repetition). The default recipe is
trained from one of them with and without `resize`, and scored on the validation images by one pass. The image is none of
those that the archive recommends. Finished runs in FOLDER are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.recipe import CONFIG
from bench.record import record
from pscl_hpc.archive import Archive, ShardWriter
from pscl_hpc.config import load_config
from pscl_hpc.models import read_card
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import evaluate, finetune
from pscl_hpc.segmentation.config import FinetuneConfig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path, help="for the enlarged archive and the runs")
    parser.add_argument("--image", default="uhcs_steel/uhcs0599", help="the annotated image")
    parser.add_argument("--factor", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    large = arguments.folder / "large.h5"
    if not large.exists():
        enlarge(arguments.archive, large, arguments.image.partition("/")[0], arguments.factor)
    rows = []
    for rule in ("1", "auto"):
        run = arguments.folder / f"resize-{rule}"
        config = load_config(
            CONFIG,
            [
                f"data.archive={large}",
                f"references=[{arguments.image}]",
                f"resize={rule}",
                "runtime.threads=1",
                "runtime.precision=bf16",
                f"run={run}",
            ],
        )
        assert isinstance(config, FinetuneConfig)
        if not (run.exists() and RunFolder.load(run).done):
            finetune(config)
        scores = evaluate(run, splits=["val"], tta="none")
        rows.append(
            {
                "resize": rule,
                "factor": read_card(run).resize,
                "validation_dice": scores["mean_dice"],
                "dice": scores["dice"],
            }
        )
        print(rows[-1], flush=True)
    content = {"image": arguments.image, "enlarged": arguments.factor, "rows": rows}
    print(record("large-images", content, command="python -m bench.large_images ARCHIVE FOLDER"))


def enlarge(source: Path, target: Path, name: str, factor: int) -> None:
    """An archive of the annotated images of a collection with ``factor`` times the pixels a side."""
    with Archive(source) as archive, ShardWriter(target, [archive.collections[name]]) as writer:
        for image in archive.select(datasets=[name], has_mask=True):
            grey = Image.fromarray(np.asarray(archive.read_image(image.index)).squeeze())
            size = (factor * image.width, factor * image.height)
            mask = archive.read_mask(image.index)
            writer.add(
                np.asarray(grey.resize(size, Image.Resampling.BICUBIC)),
                mask=np.kron(mask, np.ones((factor, factor), np.uint8)),
                id=image.id,
                dataset=name,
                split=image.split,
            )


if __name__ == "__main__":
    main()

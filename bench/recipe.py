"""Trials of the default recipe on annotated images that no study uses, scored on validation images.

    python -m bench.recipe ARCHIVE FOLDER [TRIAL ...] [--images ID ...] [--set NAME=VALUE ...]

Choices of the default recipe are made here, never by test scores. Each trial of `TRIALS` is the default configuration
without `oversample` and `adapt`, which came later, and with a few other values, trained once from each image. The archive
has the sets of docs/data.md. Finished trials in FOLDER are kept; the result has all of them. `{NAME}` in a trial stands
for a path given by `--set`, such as the folder of a pretraining.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from bench.record import record
from pscl_hpc.config import load_config
from pscl_hpc.files import write_json
from pscl_hpc.segmentation import evaluate, finetune
from pscl_hpc.segmentation.config import FinetuneConfig

CONFIG = Path(__file__).parents[1] / "configs" / "finetune" / "default.yaml"
IMAGES = (
    "uhcs_steel/uhcs0599",
    "uhcs_steel/uhcs0579",
    "metaldam/micrograph14",
    "metaldam/micrograph08",
    "nasa_super/spot6_180d_7",
    "oxide_coatings/050317#3_S0440019",
)
"""Annotated training images that the archive does not recommend, and one with which an earlier recipe failed."""
SUPERVISED = "semi_supervised=null"
TRIALS: dict[str, tuple[str, ...]] = {
    "self-training, 700 steps": ("schedule.steps=700",),
    "self-training, 1,400 steps": ("schedule.steps=1400",),
    "supervised, 700 steps": (SUPERVISED, "schedule.steps=700"),
    "supervised, 1,400 steps": (SUPERVISED, "schedule.steps=1400"),
    "supervised, 2,800 steps": (SUPERVISED, "schedule.steps=2800"),
    "IDEAL's two decoders, 1,400 steps": (
        "schedule.steps=1400",
        "semi_supervised={{name: ideal, batch_size: 4}}",
    ),
    "U-Net, supervised, 1,400 steps": (
        SUPERVISED,
        "schedule.steps=1400",
        "model={{name: unet, standardise: true}}",
    ),
    "U-Net, self-training, 1,400 steps": ("schedule.steps=1400", "model={{name: unet, standardise: true}}"),
    "shading, supervised, 1,400 steps": (SUPERVISED, "schedule.steps=1400", "jitter.shading=0.4"),
    "enlarged, supervised, 700 steps": (SUPERVISED, "schedule.steps=700", "resize=1.5", "crop=[192,192]"),
    "oversample, self-training, 1,400 steps": ("schedule.steps=1400", "oversample=0.5"),
    "oversample, supervised, 700 steps": (SUPERVISED, "schedule.steps=700", "oversample=0.5"),
    "oversample, supervised, 1,400 steps": (SUPERVISED, "schedule.steps=1400", "oversample=0.5"),
    "oversample, scale from 0.4, supervised, 1,400 steps": (
        SUPERVISED,
        "schedule.steps=1400",
        "oversample=0.5",
        "scale=[0.4,1.6]",
    ),
    "oversample, 192 px, supervised, 1,400 steps": (
        SUPERVISED,
        "schedule.steps=1400",
        "oversample=0.5",
        "crop=[192,192]",
        "batch_size=2",
    ),
    "oversample, 4 of 192 px, supervised, 1,400 steps": (
        SUPERVISED,
        "schedule.steps=1400",
        "oversample=0.5",
        "crop=[192,192]",
    ),
    "oversample 1, 192 px, supervised, 1,400 steps": (
        SUPERVISED,
        "schedule.steps=1400",
        "oversample=1",
        "crop=[192,192]",
        "batch_size=2",
    ),
    "oversample 1, 192 px, self-training, 1,400 steps": (
        "schedule.steps=1400",
        "oversample=1",
        "crop=[192,192]",
        "batch_size=2",
        "semi_supervised.batch_size=2",
    ),
    "PSCL-clustered, supervised, 700 steps": (SUPERVISED, "schedule.steps=700", "pretrained={clustered}"),
    **{
        f"{name}, supervised, 700 steps": (SUPERVISED, "schedule.steps=700", f"pretrained={{{name.lower()}}}")
        for name in ("DenseCL", "BYOL")
    },
    "PSCL-clustered decoder, supervised, 700 steps": (
        SUPERVISED,
        "schedule.steps=700",
        "pretrained={decoder}",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path, help="for the runs; an interrupted call resumes there")
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help="all by default: " + "; ".join(TRIALS))
    parser.add_argument("--images", nargs="*", default=IMAGES, metavar="ID")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--record", action="store_true", help="only write the result of what is finished")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    named = dict(text.split("=", 1) for text in arguments.set)
    for image in () if arguments.record else arguments.images:
        for trial in arguments.trials or TRIALS:
            overrides = [text.format(**named) for text in TRIALS[trial]]
            print(trial, image, *score(arguments.archive, arguments.folder, trial, image, overrides))
    rows = [read(path.parent) for path in arguments.folder.glob("*/trial.json")]
    rows.sort(key=lambda row: (list(TRIALS).index(row["trial"]), IMAGES.index(row["image"])))
    print(record("recipe-trials", {"rows": rows}, command="python -m bench.recipe ARCHIVE FOLDER"))


def score(archive: Path, folder: Path, trial: str, image: str, overrides: list[str]) -> list[float | None]:
    """Train from one image if that is not finished, and score the validation images of its collection."""
    run = folder / f"{trial}--{image.replace('/', '--')}".replace(" ", "-").replace(",", "")
    if not (run / "trial.json").is_file():
        config = load_config(
            CONFIG,
            [
                f"data.archive={archive}",
                f"references=[{image}]",
                "runtime.threads=1",
                "runtime.precision=bf16",
                "checkpoint.every_steps=100",
                "checkpoint.keep=1",
                "oversample=0",
                "inference.adapt=0",  # all trials are scored alike
                f"run={run}",
                *overrides,
            ],
        )
        assert isinstance(config, FinetuneConfig)
        start = time.perf_counter()
        finetune(config)
        seconds = time.perf_counter() - start
        scores = evaluate(run, splits=["val"])
        row = {
            "trial": trial,
            "overrides": [text for text in overrides if not text.startswith("pretrained")],
            "image": image,
            "seconds": round(seconds, 1),
            "validation_dice": scores["mean_dice"],
            "dice": scores["dice"],
        }
        write_json(run / "trial.json", row)
    return [read(run)["validation_dice"]]


def read(run: Path) -> dict[str, Any]:
    """The scores of a finished trial."""
    content: dict[str, Any] = json.loads((run / "trial.json").read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    main()

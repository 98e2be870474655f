"""Fine-tunes each of ``CASES`` for three steps in float64: in this process, or as one of the ranks that the environment
describes: ``rank_worker.py ARCHIVE FOLDER`` writes ``FOLDER/<rank>.pt``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pscl_hpc.archive import Archive
from pscl_hpc.config import RuntimeConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.finetune import FinetuneTask, score_images
from pscl_hpc.training import Loop, Ranks, device, join_ranks
from pscl_hpc.training.decisions import decide
from tests.segmentation.helpers import settings

STEPS = 3
TWO = ["alloy/train0", "alloy/train1"]
CASES: dict[str, dict[str, Any]] = {
    "supervised": {"references": TWO},
    "one window a rank, every intensity change": {
        "jitter": {"gamma": 0.3, "noise": 0.1, "blur": 1.0},
        "batch_size": 2,
    },
    "semi-supervised": {
        "references": TWO,
        "semi_supervised": {"batch_size": 2, "ramp": 0.0, "threshold": 0.3},
    },
    "self-training, any angle and scale": {
        "references": TWO,
        "average": 0.9,
        "any_angle": True,
        "scale": [0.7, 1.4],
        "semi_supervised": {"name": "self-training", "batch_size": 4, "start": 0.0, "ramp": 0.0},
    },
    "clipping, recomputed activations": {
        "optimiser": {"lr": 0.01, "clip_norm": 0.5},
        "runtime": {"device": "cpu", "threads": 1, "activation_checkpointing": True},
    },
}


def train(archive: Path, name: str, ranks: Ranks) -> dict[str, Any]:
    """Losses, terms and gradients of every step, and the state after the last."""
    torch.set_default_dtype(torch.float64)
    try:
        config = settings(archive, Path("unused"), **{"batch_size": 4, **CASES[name]})
        with Archive(archive) as opened:
            task = FinetuneTask(config, opened, ranks)
            loop = Loop(task, RunFolder.follow("unused", config, done=False), ranks)
            found: dict[str, Any] = {"values": [], "gradients": [], "images": []}
            for step in range(STEPS):
                batch = task.dataset[step]
                found["images"].append(list(task.image_ids(step)))
                values = loop.step([batch._replace(images=batch.images.double())], measure=True)
                found["values"].append(ranks.mean(values))
                weights = dict(task.module.named_parameters())
                found["gradients"].append({key: w.grad.clone() for key, w in weights.items()})
        return {**found, "state": dict(task.module.state_dict())}
    finally:
        torch.set_default_dtype(torch.float32)


def validate(archive: Path, ranks: Ranks) -> dict[str, Any]:
    """Scores of five annotated images by a network without training."""
    with Archive(archive) as opened:
        task = FinetuneTask(settings(archive, Path("unused")), opened, ranks)
        images = opened.select(datasets=["alloy"], splits=["train", "val", "test"], has_mask=True)[:5]
        assert len(images) == 5, "the ranks have unequal shares"
        return score_images(task.predictor, opened, images, ranks, 0).to_json()


def decided(archive: Path, ranks: Ranks) -> dict[str, Any]:
    """What ranks decide that would differ if each one decided for itself."""
    runtime = {"device": "cpu", "threads": 1, "precision": "auto"}
    config = settings(archive, Path("unused"), schedule={"minutes": 1e-4}, runtime=runtime)
    device.measure_precisions = lambda: {"fp32": 1.0, "bf16": 0.5 + ranks.rank}
    folder = RunFolder.follow("unused", config, done=False)
    with Archive(archive) as opened:

        def build(made: FinetuneConfig) -> FinetuneTask:
            task = FinetuneTask(made, opened, ranks)
            task.fewest_steps = task.most_steps = 200 + ranks.rank
            return task

        decide(config, folder, ranks, build, time.monotonic())
    return folder.decided


def main(archive: str, folder: str) -> None:
    with join_ranks(RuntimeConfig(device="cpu", threads=1, collective_timeout_s=60)) as ranks:
        results = {name: train(Path(archive), name, ranks) for name in CASES}
        scores = validate(Path(archive), ranks)
        decisions = decided(Path(archive), ranks)
        torch.save({**results, "scores": scores, "decided": decisions}, f"{folder}/{ranks.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

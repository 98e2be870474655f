"""A small archive of two-phase textures, and a small configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from pscl_hpc.archive import Collection, ShardWriter, Window
from pscl_hpc.segmentation import ClassList, finetune
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.inference import ReadWindow
from pscl_hpc.training import Loop, StopRequested, clear_stop, request_stop

CLASSES = ("matrix", "carbide", "void", "scratch")
SCRATCH = 3
LEVELS = np.array([90, 190, 20, 140], np.float64)

ALLOY = Collection("alloy", CLASSES, 0, (SCRATCH,), ("alloy/train0", "alloy/train1"))
OTHER = Collection("other", ("matrix", "phase"), 0, (), ())
UNNAMED = Collection("unnamed")
THREE = ClassList(("matrix", "phase", "void"))


def reader(image: npt.NDArray[np.float32]) -> ReadWindow:
    """Windows of an image (channels, h, w), all of which must be inside it."""

    def read(window: Window) -> npt.NDArray[np.float32]:
        top, left, height, width = window
        assert 0 <= top < top + height <= image.shape[1]
        assert 0 <= left < left + width <= image.shape[2]
        return image[:, top : top + height, left : left + width]

    return read


def micrograph(
    seed: int, height: int = 48, width: int = 56
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An image (h, w) whose grey level tells the class, and its mask: all classes, and some of it not annotated."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(height, width)), 2.5, mode="wrap")
    cuts = np.quantile(field, (0.08, 0.7))
    mask = np.where(field < cuts[0], 2, np.where(field > cuts[1], 1, 0)).astype(np.uint8)
    mask[height // 2, :] = SCRATCH
    image = np.clip(LEVELS[mask] + rng.normal(scale=10, size=mask.shape), 0, 255).astype(np.uint8)
    mask[:4, :4] = 255
    return image, mask


def write_archive(path: Path) -> Path:
    """An archive with train, validation and two test splits, a second collection, and images to be refused."""
    with ShardWriter(path, [ALLOY, OTHER, UNNAMED]) as writer:
        splits = ("train", "train", "val", "test", "test", "test_ood")
        for place, split in enumerate(splits):
            image, mask = micrograph(place, 48 + place, 56 - place)
            name = f"alloy/{split}{splits[:place].count(split)}"
            writer.add(image, mask=mask, id=name, dataset="alloy", split=split, specimen=f"s{place}")
        image, mask = micrograph(7)
        writer.add(image, id="alloy/bare", dataset="alloy", split="train")
        empty = np.full_like(mask, 255)
        writer.add(image, mask=empty, id="alloy/blank", dataset="alloy", split="train")
        writer.add(image, mask=np.where(mask == 1, 1, 0), id="other/a", dataset="other", split="train")
        writer.add(image, mask=np.zeros_like(mask), id="other/b", dataset="other", split="val")
        writer.add(image, id="unnamed/a", dataset="unnamed", split="train")
    return path


def settings(archive: Path, run: Path, **changes: Any) -> FinetuneConfig:
    """A configuration of a second or two; ``changes`` replace whole sections or single keys. A pretrained trunk has its
    own description."""
    tree: dict[str, Any] = {
        "kind": "finetune",
        "run": str(run),
        "data": {"archive": str(archive)},
        "references": ["alloy/train0"],
        **({} if changes.get("pretrained") else {"model": {"widths": [4, 8]}}),
        "crop": [32, 32],
        "batch_size": 2,
        "schedule": {"steps": 6},
        "optimiser": {"lr": 0.01},
        "validate_every": 3,
        "checkpoint": {"every_steps": 2},
        "log": {"every_steps": 1},
        "runtime": {"device": "cpu", "threads": 1},
    }
    return FinetuneConfig.model_validate({**tree, **changes})


def stop_after_a_step(config: FinetuneConfig) -> None:
    """Start a training and stop it after its first step, with what it decides at its start decided."""
    begin = Loop._begin

    def begin_and_stop(loop: Loop) -> Any:
        request_stop("test")
        return begin(loop)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "_begin", begin_and_stop)
        with pytest.raises(StopRequested):
            finetune(config)
    clear_stop()

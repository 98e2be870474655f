"""A folder of micrographs, the mask of one, and a short training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pscl_hpc.workflow import Request

SMALL = (
    "model.name=unet",
    "model.widths=[4,8]",
    "crop=[32,32]",
    "batch_size=2",
    "semi_supervised.batch_size=2",
    "schedule.steps=8",
    "schedule.warmup_steps=0",
    "checkpoint.every_steps=2",
    "runtime.threads=1",
    "runtime.device=cpu",
)


def micrograph(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :56]
    mask = ((y - random.uniform(10, 38)) ** 2 + (x - random.uniform(10, 46)) ** 2 < 90).astype(np.uint8)
    return (np.where(mask == 1, 190, 80) + random.normal(0, 12, mask.shape)).clip(0, 255).astype(
        np.uint8
    ), mask


def request_of(home: Path, **changes: object) -> Request:
    tree = {"folder": str(home / "sem"), "masks": (str(home / "painted/1_mask.png"),), "overrides": SMALL}
    return Request.model_validate({**tree, **changes})


def words_of(home: Path) -> list[str]:
    """The command line of the same request, without what is specific to a test."""
    return [
        *("segment", str(home / "sem")),
        *("--mask", str(home / "painted/1_mask.png")),
        *("--out", str(home / "out")),
    ]

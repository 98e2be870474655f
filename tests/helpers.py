"""Small archives and configurations shared by tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pscl_hpc.archive import Collection, ShardWriter
from pscl_hpc.config import resolve_config
from pscl_hpc.methods import Setting
from pscl_hpc.pretraining.config import PretrainConfig

PATIENCE_S = 240.0
"""How long a test waits at most for something that must happen, on a machine however busy."""
CLASSES = ("matrix", "plates", "spots")


def micrograph(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A striped and spotted picture with its mask: three classes that differ in level and texture."""
    random = np.random.default_rng(seed)
    rows, cols = np.mgrid[: size[0], : size[1]]
    mask = ((rows // 12 + seed) % 2).astype(np.uint8)
    mask[((rows - size[0] // 2) ** 2 + (cols - size[1] // 2) ** 2) < (min(size) // 4) ** 2] = 2
    level = np.array([60, 130, 200])[mask] + random.normal(0, 12, size)
    return np.clip(level, 0, 255).astype(np.uint8), mask


def annotated_setting(classes: int, ignored: tuple[int, ...] = (), *, images_per_step: int = 1) -> Setting:
    """What a method knows of references with so many classes."""
    names = tuple(f"class {index}" for index in range(classes))
    return Setting(Collection("test", names, 0, ignored, ()), images_per_step=images_per_step)


def small_archive(path: Path, *, images: int = 6, size: tuple[int, int] = (48, 40)) -> Path:
    """An archive with one annotated collection ``alloy`` and one unlabelled ``other``."""
    collections = [
        Collection("alloy", CLASSES, 0, (), ("alloy/0",)),
        Collection("other", (), 0, (), ()),
    ]
    with ShardWriter(path, collections) as writer:
        for index in range(images):
            image, mask = micrograph(index, size)
            split = "val" if index == images - 1 else "train"
            writer.add(image, id=f"alloy/{index}", dataset="alloy", mask=mask, split=split)
        writer.add(micrograph(99, (33, 70))[0], id="other/0", dataset="other", split="train")
    return path


def small_config(archive: Path, run: Path, **changes: Any) -> PretrainConfig:
    """A pretraining of seconds. ``changes`` replace top-level keys."""
    tree: dict[str, Any] = {
        "kind": "pretrain",
        "run": str(run),
        "data": {"archive": str(archive)},
        "model": {"widths": [4, 8, 8, 16]},
        "views": {"size": [32, 32]},
        "method": {"name": "pscl-simclr", "reference": {"ids": ["alloy/0"]}, "templates_per_class": 2},
        "batch_size": 3,
        "schedule": {"steps": 6},
        "log": {"every_steps": 1},
        "checkpoint": {"every_steps": 2},
        "runtime": {"threads": 1},
        **changes,
    }
    config = resolve_config(tree, source="test")
    assert isinstance(config, PretrainConfig)
    return config


def eventually(holds: Callable[[], object], what: str = "", seconds: float = PATIENCE_S) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what or holds}"
        time.sleep(0.02)

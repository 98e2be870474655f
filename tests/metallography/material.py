"""An archive of micrographs with bright discs, and their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pscl_hpc.archive import Collection, ShardWriter

UM_PER_PIXEL = 0.25
SPLITS = ("train", "val", "val", "test", "test")


def micrograph(seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size) and its mask; the grey level tells the class."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    mask = np.zeros((size, size), np.uint8)
    for cy, cx in random.uniform(0, size, (6 + seed, 2)):
        mask[(y - cy) ** 2 + (x - cx) ** 2 < random.uniform(3, 7) ** 2] = 1
    image = np.where(mask == 1, 190, 80) + random.normal(0, 12, mask.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_archive(path: Path) -> Path:
    """Images ``alloy/train0``, ``alloy/val0``, ``alloy/val1``, ``alloy/test0``, ``alloy/test1``, and another collection."""
    alloy = Collection("alloy", ("matrix", "carbide"), 0, (), ("alloy/train0",))
    with ShardWriter(path, [alloy, Collection("other", ("a", "b"))]) as writer:
        for place, split in enumerate(SPLITS):
            image, mask = micrograph(place)
            writer.add(
                image,
                mask=mask,
                id=f"alloy/{split}{SPLITS[:place].count(split)}",
                dataset="alloy",
                split=split,
                um_per_pixel=UM_PER_PIXEL,
            )
        writer.add(*micrograph(9)[:1], mask=micrograph(9)[1], id="other/0", dataset="other")
    return path

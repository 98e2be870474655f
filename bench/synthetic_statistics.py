"""Class shares of the synthetic alloys, and the best segmentation by grey level only.

    python bench/synthetic_statistics.py

For each class: the best pooled Dice of ANY set of grey levels over all images, chosen with all masks known. Levels are
added in the order of the class's share among their pixels, and the best number of levels counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bench.record import record
from pscl_hpc.archive.synthesis import FAMILIES, class_names, synthesise

IMAGES, SEED, SIZE = 48, 0, (256, 256)


def best_dice(counts: npt.NDArray[np.int64], wanted: int) -> float:
    """Best Dice of class ``wanted`` from the pixels by class and grey level, (classes, 256)."""
    inside, every = counts[wanted], counts.sum(axis=0)
    order = np.argsort(-inside / np.maximum(every, 1), kind="stable")
    dice = 2 * np.cumsum(inside[order]) / (np.cumsum(every[order]) + inside.sum())
    return float(dice.max())


def main() -> None:
    families: dict[str, Any] = {}
    for family in FAMILIES:
        names = class_names(family)
        counts = np.zeros((len(names), 256), np.int64)
        with_rare = 0
        for index in range(IMAGES):
            picture = synthesise(family, seed=SEED, index=index, size=SIZE)
            np.add.at(counts, (picture.mask, picture.image), 1)
            with_rare += bool((picture.mask == len(names) - 1).any())
        share = counts.sum(axis=1) / counts.sum()
        families[family] = {
            "classes": list(names),
            "share": share.tolist(),
            "best_dice_by_grey_level": [best_dice(counts, c) for c in range(len(names))],
            "images_with_rare_class": with_rare / IMAGES,
        }
    result = {"images": IMAGES, "seed": SEED, "size": SIZE, "families": families}
    print(record("synthetic-statistics", result, command="python bench/synthetic_statistics.py"))


if __name__ == "__main__":
    main()

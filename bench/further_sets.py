"""The three alloy sets of `configs/studies/further-sets.yaml`, converted from clones of public repositories.

    python -m bench.further_sets CLONE_OF_BAINITE_MARTENSITE CLONE_OF_BAINITU_SEGMENATION \\
        CLONE_OF_GRAIN_SIZE_ANALYSIS CLONE_OF_SUPERALLOY_SEGMENTATION FOLDER
    pscl-hpc archive build FOLDER/* --out further.h5

Repositories, commits, licences and conversions: docs/data.md. Images that a clone lacks are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.clones import Clone, Item, draw, write

UNKNOWN = 255
BAINITE_FIELDS = {1: "8_797-DQ-full_1000x-1", 2: "27_797-DQ-full_1000x-2", 3: "19_797-DQ-full_1000x-3"}
GRAIN_FIELDS = {"train": range(1, 16), "test": range(31, 41)}
"""Fields with a gap between, as neighbours might overlap."""
AGES = {"10H": "train", "300H": "train", "150H": "test", "500H": "test"}
CLASSES = {
    "bainite_martensite": ["martensite", "bainite"],
    "grain_boundary_316l": ["grain", "boundary"],
    "sx_superalloy": ["gamma matrix", "gamma prime"],
}


def bainite_martensite(images: Clone, labels: Clone) -> Iterator[Item]:
    """Three fields in four tiles each, the first to train. Pixels in no polygon, in polygons of both classes, and under the
    scale bar are unknown."""
    for field, name in BAINITE_FIELDS.items():
        image = images.image(f"images/dq_full/{name}.tif.png")
        shapes = labels.json(f"data_labeling/src/metadata/797-DQ-full_1000x-{field}.json")["shapes"]
        mask = None
        if image is not None:
            inside = [
                draw(image.shape, [(1, outline(shape)) for shape in shapes if shape["label"] == label]) == 1
                for label in CLASSES["bainite_martensite"]
            ]
            mask = np.full(image.shape, UNKNOWN, np.uint8)
            mask[inside[0] & ~inside[1]], mask[inside[1] & ~inside[0]] = 0, 1
            mask[1070:, 1270:] = UNKNOWN  # the scale bar
        for row, column in np.ndindex(2, 2):
            tile = np.s_[row * 600 : (row + 1) * 600, column * 800 : (column + 1) * 800]
            split = "train" if field == 1 else "test"
            yield (
                split,
                f"field{field}_{row}{column}",
                None if image is None else image[tile],
                None if mask is None else mask[tile],
            )


def outline(shape: dict[str, Any]) -> list[tuple[float, float]]:
    """The points of a shape of LabelMe."""
    return [(x, y) for x, y in shape["points"]]


def grain_boundary_316l(grains: Clone) -> Iterator[Item]:
    """The four tiles at the top left of a field, joined. Boundaries are dark in the masks."""
    folder = "data/GRAIN DATA SET"
    for split, fields in GRAIN_FIELDS.items():
        for field in fields:
            image, mask = (
                joined(grains, f"{folder}/{kind}/{kind}{field}_{{}}_{{}}.jpg") for kind in ("RG", "RGMask")
            )
            yield split, f"field{field:02d}", image, None if mask is None else (mask < 128).astype(np.uint8)


def joined(clone: Clone, name: str) -> np.ndarray | None:
    """Four tiles as one image, None where the clone lacks one."""
    tiles = [[clone.image(name.format(row, column)) for column in (1, 2)] for row in (1, 2)]
    rows = [[tile for tile in row if tile is not None] for row in tiles]
    return np.block(rows) if all(len(row) == 2 for row in rows) else None


def sx_superalloy(superalloy: Clone) -> Iterator[Item]:
    """Gamma prime is bright in the masks; two heat treatments to train, two others to test."""
    for age, split in AGES.items():
        folder = f"data/examples/1070-{age}"
        mask = superalloy.image(f"{folder}/GT.png")
        image = superalloy.image(f"{folder}/original_sem.jpg")
        yield split, f"age{age}", image, None if mask is None else (mask >= 128).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, source in (
        ("bainite_images", "FilipHa5/Bainite_martensite"),
        ("bainite_labels", "Tomzonkal/Bainitu_segmenation"),
        ("grains", "MoustaphaCheikhJidou/grain-size-analysis-316L-microstructure"),
        ("superalloy", "amptere/prompt-guided-superalloy-segmentation"),
    ):
        parser.add_argument(name, type=Path, help=f"clone of github.com/{source}")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    convert(**vars(arguments))


def convert(bainite_images: Path, bainite_labels: Path, grains: Path, superalloy: Path, folder: Path) -> None:
    """Write the three sets into a folder."""
    for name, items in {
        "bainite_martensite": bainite_martensite(Clone(bainite_images), Clone(bainite_labels)),
        "grain_boundary_316l": grain_boundary_316l(Clone(grains)),
        "sx_superalloy": sx_superalloy(Clone(superalloy)),
    }.items():
        write(folder / name, CLASSES[name], items)


if __name__ == "__main__":
    main()

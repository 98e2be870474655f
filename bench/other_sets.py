"""The four alloy sets of `configs/studies/other-sets.yaml`, converted from clones of their public repositories.

    python -m bench.other_sets CLONE_OF_PRETRAINED_MICROSCOPY_MODELS CLONE_OF_AMPIS FOLDER
    pscl-hpc archive build FOLDER/* --out others.h5

Repositories, commits, licences and conversions: docs/data.md. Images that a clone lacks are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from bench.clones import Clone, Item, draw, write

SPHEROIDITE_TEST = ("800C-24H-Q-2", "800C-24H-Q-6", "800C-85H-Q-3", "800C-85H-Q-6", "800C-8H-Q-3")
"""Drawn at random."""
POWDER_TRAIN = ("Sc1Tile_001-001", "Sc1Tile_001-002")


def oxide_coatings(nasa: Clone) -> Iterator[Item]:
    """Splits and masks as published."""
    for split in ("train", "val", "test"):
        for name in nasa.names(f"benchmark_segmentation_data/EBC1/{split}"):
            mask = nasa.image(name.replace(f"/{split}/", f"/{split}_annot/"))
            yield split, PurePosixPath(name).stem, nasa.image(name), mask


def melt_pools(nasa: Clone) -> Iterator[Item]:
    """Tiles without overlap; the validation images as published, of another slice, are the test images."""
    folder = "instance_segmentation/data"
    for published, split in (("train", "train"), ("validation", "test")):
        content = nasa.json(f"{folder}/annotations/{published}.json")
        outlines: dict[str, list[list[float]]] = {}
        names = {image["id"]: PurePosixPath(image["file_name"]).stem for image in content["images"]}
        for annotation in content["annotations"]:
            outlines.setdefault(names[annotation["image_id"]], []).extend(annotation["segmentation"])
        for name in nasa.names(f"{folder}/{published}"):
            stem = PurePosixPath(name).stem
            if int(stem.split("_")[1]) % 512 == 0:
                image = nasa.image(name)
                polygons = [
                    (1, list(zip(line[::2], line[1::2], strict=True))) for line in outlines.get(stem, [])
                ]
                yield split, stem, image, None if image is None else draw(image.shape, polygons)


def spheroidite_particles(ampis: Clone) -> Iterator[Item]:
    """Masks divided at 128; half of the images to test."""
    for name in ampis.names("examples/spheroidite/data/images"):
        stem = PurePosixPath(name).stem.split("_", 1)[1]
        split = "test" if stem.startswith(SPHEROIDITE_TEST) else "train"
        mask = ampis.image(name.replace("/images/", "/annotations/"))
        yield split, stem, ampis.image(name), None if mask is None else (mask >= 128).astype(np.uint8)


def powder_particles(ampis: Clone) -> Iterator[Item]:
    """Outlines of particles, then of satellites; images without both stay without a mask, for training."""
    kinds = [outlines_of_powders(ampis, kind) for kind in ("particle", "satellite")]
    for name in ampis.names("examples/powder/data/images_png"):
        if name.endswith(".png"):
            image, path = ampis.image(name), PurePosixPath(name)
            mask, split = None, "train"
            if all(path.name in kind for kind in kinds) and image is not None:
                polygons = [(value, line) for value, kind in enumerate(kinds, 1) for line in kind[path.name]]
                mask = draw(image.shape, polygons)
                split = "train" if path.stem.startswith(POWDER_TRAIN) else "test"
            yield split, path.stem, image, mask


def outlines_of_powders(ampis: Clone, kind: str) -> dict[str, list[list[tuple[float, float]]]]:
    """Polygons of the images of the published training and validation annotations."""
    outlines = {}
    for published in ("training", "validation"):
        content = ampis.json(f"examples/powder/data/via_2.0.8/via_powder_{kind}_masks_{published}.json")
        for image in content["_via_img_metadata"].values():
            shapes = [region["shape_attributes"] for region in image["regions"]]
            lines = [list(zip(shape["all_points_x"], shape["all_points_y"], strict=True)) for shape in shapes]
            if lines:
                outlines[image["filename"]] = lines
    return outlines


CLASSES = {
    "oxide_coatings": ["background", "oxide", "crack"],
    "melt_pools": ["background", "melt pool"],
    "spheroidite_particles": ["matrix", "spheroidite particles"],
    "powder_particles": ["background", "powder", "satellite"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nasa", type=Path, help="clone of github.com/nasa/pretrained-microscopy-models")
    parser.add_argument("ampis", type=Path, help="clone of github.com/rccohn/AMPIS")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    convert(arguments.nasa, arguments.ampis, arguments.folder)


def convert(nasa: Path, ampis: Path, folder: Path) -> None:
    """Write the four sets into a folder."""
    for read, clone in {
        oxide_coatings: nasa,
        melt_pools: nasa,
        spheroidite_particles: ampis,
        powder_particles: ampis,
    }.items():
        write(folder / read.__name__, CLASSES[read.__name__], read(Clone(clone)))


if __name__ == "__main__":
    main()

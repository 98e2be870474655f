"""The four alloy sets of `configs/studies/other-sets.yaml`, converted from clones of their public repositories.

    python -m bench.other_sets CLONE_OF_PRETRAINED_MICROSCOPY_MODELS CLONE_OF_AMPIS FOLDER
    pscl-hpc archive build FOLDER/* --out others.h5

Repositories, commits, licences and conversions: docs/data.md. Images that a clone lacks are left out.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SPHEROIDITE_TEST = ("800C-24H-Q-2", "800C-24H-Q-6", "800C-85H-Q-3", "800C-85H-Q-6", "800C-8H-Q-3")
"""Drawn at random."""
POWDER_TRAIN = ("Sc1Tile_001-001", "Sc1Tile_001-002")


class Clone:
    """Files of the newest commit of a clone, which may lack some of them."""

    def __init__(self, folder: Path) -> None:
        self.git = ["git", "-C", str(folder)]

    def names(self, folder: str) -> list[str]:
        """Paths of the files below a folder."""
        listing = [*self.git, "ls-tree", "-r", "--name-only", "-z", "HEAD", folder + "/"]
        names = subprocess.run(listing, capture_output=True, check=True, text=True).stdout.split("\0")
        return [name for name in names if name]

    def read(self, name: str) -> bytes | None:
        """A file, or None where the clone lacks it."""
        shown = subprocess.run([*self.git, "show", f"HEAD:{name}"], capture_output=True, check=False)
        return shown.stdout if shown.returncode == 0 else None

    def json(self, name: str) -> Any:
        """A JSON file."""
        content = self.read(name)
        if content is None:
            raise SystemExit(f"other_sets: the clone has no {name}: clone all files")
        return json.loads(content)

    def image(self, name: str) -> np.ndarray | None:
        """A grey image."""
        content = self.read(name)
        return None if content is None else np.array(Image.open(io.BytesIO(content)).convert("L"))


Item = tuple[str, str, np.ndarray | None, np.ndarray | None]
"""Split, name, grey image and mask of class indices."""


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


def draw(shape: Iterable[int], polygons: list[tuple[int, list[tuple[float, float]]]]) -> np.ndarray:
    """Filled polygons as class indices, later ones over earlier ones."""
    height, width = shape
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for value, polygon in polygons:
        pen.polygon(polygon, fill=value)
    return np.array(canvas)


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
        write(folder / read.__name__, read(Clone(clone)))


def write(folder: Path, items: Iterator[Item]) -> None:
    """A folder with `img`, `gt` and `splits.json`."""
    splits: dict[str, list[str]] = {}
    for part in ("img", "gt"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, name, image, mask in items:
        if image is None:
            print(f"{folder.name}: {name} is not in the clone")
            continue
        splits.setdefault(split, []).append(f"{name}.png")
        Image.fromarray(image).save(folder / "img" / f"{name}.png")
        if mask is not None:
            Image.fromarray(mask).save(folder / "gt" / f"{name}.png")
    content = {"classes": CLASSES[folder.name], "background": 0, "ignore_classes": [], **splits}
    (folder / "splits.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"{folder.name}: { ({name: len(files) for name, files in splits.items()}) }")


if __name__ == "__main__":
    main()

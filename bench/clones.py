"""Alloy sets from clones of public repositories: files of a clone, outlines, the folder for `archive build`."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Item = tuple[str, str, np.ndarray | None, np.ndarray | None]
"""Split, name, grey image and mask of class indices."""


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
            raise SystemExit(f"the clone has no {name}: clone all files")
        return json.loads(content)

    def image(self, name: str) -> np.ndarray | None:
        """A grey image."""
        content = self.read(name)
        return None if content is None else np.array(Image.open(io.BytesIO(content)).convert("L"))


def draw(shape: Iterable[int], polygons: list[tuple[int, list[tuple[float, float]]]]) -> np.ndarray:
    """Filled polygons as class indices, later ones over earlier ones."""
    height, width = shape
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for value, polygon in polygons:
        pen.polygon(polygon, fill=value)
    return np.array(canvas)


def write(folder: Path, classes: list[str], items: Iterable[Item]) -> None:
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
    content = {"classes": classes, "background": 0, "ignore_classes": [], **splits}
    (folder / "splits.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"{folder.name}: { ({name: len(files) for name, files in splits.items()}) }")

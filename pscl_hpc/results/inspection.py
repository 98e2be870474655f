"""``inspection.npz`` of a pretraining run: sampled patches and features of a few images."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.errors import UserError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ScaleInspection:
    """One decoder scale of an inspection."""

    patches: Array
    """(n, T, 2) row and column of each sampled patch in the grid; -1 where there is none. T is 0 for methods that do
    not sample."""
    grid: tuple[int, int]
    """Height and width of the grid."""
    classes: Array
    """(T,) class of each template."""
    purity: Array
    """(n,) share of sampled patches that are on their class; NaN when unknown."""
    pca: Array
    """(n, h, w, 3) uint8 colour map of the features."""


@dataclass(frozen=True)
class Inspection:
    """A few images with the patches sampled in them and their features."""

    images: Array
    """(n, h, w) uint8."""
    labels: Array
    """(n, h, w) uint8 class indices, 255 where unknown."""
    references: int
    """How many of the images, the first ones, are annotated references."""
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    scales: tuple[ScaleInspection, ...]
    """From coarse to fine."""
    pictures: dict[str, Array] = field(default_factory=dict)
    """Pictures that the method adds, by name, (n, h, w) uint8 each."""


def read_inspection(path: Path) -> Inspection:
    """Read ``inspection.npz`` without unpickling anything.

    Raises:
        UserError: it cannot be read, or arrays are missing or do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return _inspection(arrays)
    except KeyError as error:
        reason = f"lacks the array {error.args[0]}"
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        reason = f"cannot be read ({(str(error) or type(error).__name__).splitlines()[0]})"
    raise UserError(f"{path}: {reason}; resume or repeat the pretraining")


def _inspection(arrays: dict[str, Array]) -> Inspection:
    images = _picture("images", arrays["images"], 3)
    count, height, width = images.shape
    labels = _picture("labels", arrays["labels"], 3)
    ids = tuple(str(name) for name in arrays["ids"].ravel())
    if labels.shape != (count, height, width) or len(ids) != count:
        raise ValueError("images, labels and ids differ in number or size")
    names = tuple(str(name) for name in arrays["classes"].ravel())
    numbers = sorted(int(match.group(1)) for key in arrays if (match := re.fullmatch(r"pca(\d+)", key)))
    scales = tuple(_scale(arrays, index, count) for index in numbers)
    pictures = {
        key.removeprefix("picture-"): _picture(key, array, 3)
        for key, array in arrays.items()
        if key.startswith("picture-")
    }
    if any(len(picture) != count for picture in pictures.values()):
        raise ValueError("images and pictures differ in number")
    return Inspection(images, labels, int(arrays["references"]), ids, names, scales, pictures)


def _scale(arrays: dict[str, Array], index: int, count: int) -> ScaleInspection:
    grid = arrays[f"grid{index}"]
    pca = _picture(f"pca{index}", arrays[f"pca{index}"], 4)
    if f"patches{index}" in arrays:
        patches, classes = arrays[f"patches{index}"], arrays[f"class{index}"].astype(np.int64)
        purity = arrays[f"purity{index}"].astype(np.float64)
    else:
        patches, classes = np.zeros((count, 0, 2), np.int32), np.zeros(0, np.int64)
        purity = np.full(count, np.nan)
    fits = patches.shape == (count, len(classes), 2) and purity.shape == (count,) and grid.shape == (2,)
    if not fits or pca.shape[0] != count or pca.shape[3] != 3 or int(grid.min()) < 1:
        raise ValueError(f"the arrays of scale {index} do not fit together")
    return ScaleInspection(patches, (int(grid[0]), int(grid[1])), classes, purity, pca)


def _picture(name: str, array: Array, dimensions: int) -> Array:
    if array.dtype != np.uint8 or array.ndim != dimensions:
        raise ValueError(f"{name} is {array.dtype} with {array.ndim} dimensions")
    return array

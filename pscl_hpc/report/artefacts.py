"""The files that a run leaves for people to look at, read with every check that a stranger's file deserves."""

from __future__ import annotations

import json
import math
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.segmentation.classes import ClassList

Array = npt.NDArray[Any]


class DamagedFile(Exception):
    """A file is there but does not hold what it should; the message says what is wrong with it."""


@dataclass(frozen=True)
class SplitScores:
    """Scores of one split, pooled over its images."""

    images: int
    dice: dict[str, float | None]
    """Per scored class; None where the class is in neither mask nor prediction."""
    mean_dice: float | None
    mean_iou: float | None
    pixel_accuracy: float | None
    per_image: dict[str, float | None]
    """Mean Dice by image id."""


@dataclass(frozen=True)
class Evaluation:
    """``evaluation.json`` of a fine-tuning run."""

    collection: str
    classes: ClassList
    references: tuple[str, ...]
    """Ids of the annotated images that the run was trained on."""
    pretrained: str
    """Where the trunk came from; empty: random weights."""
    primary: str
    """The split that stands for the run."""
    splits: dict[str, SplitScores]
    archive: str = ""
    """Fingerprint of the archive that was scored; empty where the file does not say."""
    tta: bool = False
    """Scored with test-time augmentation."""
    adapt: float = 0.0
    """Share of each image's own statistics in batch normalisation when it was scored."""

    @property
    def inference(self) -> str:
        """How the predictions were made, in words; empty where plainly."""
        ways = ["test-time augmentation"] * self.tta + ["adaptation to each image"] * bool(self.adapt)
        return " and ".join(ways)


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
    """(n,) share of sampled patches that lie on their class; NaN when unknown."""
    pca: Array
    """(n, h, w, 3) uint8 colour map of the features."""


@dataclass(frozen=True)
class Inspection:
    """``inspection.npz`` of a pretraining run: what it sampled in a few images, and its features there."""

    images: Array
    """(n, h, w) uint8."""
    labels: Array
    """(n, h, w) uint8 class indices, 255 where unknown."""
    references: int
    """The first so many images are annotated references."""
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    scales: tuple[ScaleInspection, ...]
    """From coarse to fine."""
    pictures: dict[str, Array] = field(default_factory=dict)
    """What the method shows of itself, by name, (n, h, w) uint8 each."""


def read_evaluation(path: Path) -> Evaluation:
    """Read ``evaluation.json``.

    Raises:
        DamagedFile: when it is not what ``pscl-hpc evaluate`` writes.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        splits = {str(name): _scores(part) for name, part in tree["splits"].items()}
        primary = str(tree["split"])
        if primary not in splits:
            raise KeyError(primary)
        return Evaluation(
            collection=str(tree["collection"]),
            classes=ClassList(
                tuple(str(name) for name in tree["classes"]),
                int(tree["background"]),
                tuple(int(index) for index in tree["ignore_classes"]),
            ),
            references=tuple(str(name) for name in tree["references"]),
            pretrained=str(tree["pretrained"]),
            primary=primary,
            splits=splits,
            archive=str(tree.get("archive", "")),
            tta=bool(tree.get("tta", False)),
            adapt=float(tree.get("adapt", 0.0)),
        )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise DamagedFile("is not valid JSON; run 'pscl-hpc evaluate' again") from None
    except KeyError as error:
        raise DamagedFile(f"lacks the key {error.args[0]}; run 'pscl-hpc evaluate' again") from None
    except (AttributeError, TypeError, ValueError):
        raise DamagedFile("does not hold scores as they are written; run 'pscl-hpc evaluate' again") from None


def read_inspection(path: Path) -> Inspection:
    """Read ``inspection.npz`` without unpickling anything.

    Raises:
        DamagedFile: when arrays are missing or do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return _inspection(arrays)
    except KeyError as error:
        raise DamagedFile(f"lacks the array {error.args[0]}; continue or repeat the pretraining") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(f"cannot be read ({reason}); continue or repeat the pretraining") from None


def number(value: Any) -> float | None:
    """A finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _scores(tree: dict[str, Any]) -> SplitScores:
    return SplitScores(
        images=int(tree["images"]),
        dice={str(name): number(value) for name, value in tree["dice"].items()},
        mean_dice=number(tree["mean_dice"]),
        mean_iou=number(tree["mean_iou"]),
        pixel_accuracy=number(tree["pixel_accuracy"]),
        per_image={str(item["id"]): number(item["mean_dice"]) for item in tree["per_image"]},
    )


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

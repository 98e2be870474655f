"""Reading class-index masks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from pscl_hpc.archive.format import IGNORE_INDEX, Collection
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.pillow import open_picture
from pscl_hpc.archive.writer import check_mask, mask_values

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_WANTED = "a mask is an image of class indices (0, 1, 2, ...; 255 = not annotated)"


def read_mask(
    path: Path, collection: Collection, height: int, width: int, cropped: int
) -> npt.NDArray[np.uint8]:
    """(cropped, width) class indices of an image.

    Args:
        height, width: size of the image file.
        cropped: rows that are left without the information bar; the mask may have either height.

    Raises:
        Unreadable: the file is damaged, colour-coded, of another size or holds unknown classes.
    """
    mask = _plane(path)
    if mask.shape == (height, width):
        mask = mask[:cropped]
    elif mask.shape != (cropped, width):
        size = " x ".join(map(str, mask.shape))
        raise Unreadable(
            f"the mask {path.parent.name}/{path.name} is {size} pixels, the image {height} x {width}; export both at "
            "one size (--crop-bottom if an information bar was cut)"
        )
    try:
        if mask.dtype.kind == "u" and len(collection.classes) == 2 and mask_values(mask) == [0, IGNORE_INDEX]:
            raise Unreadable(f"the mask {path.name} holds 0 and 255; {_WANTED}, so write 0 and 1")
        check_mask(mask, cropped, width, collection)
    except ValueError as error:
        named = "correct the mask, or name the class in splits.json or --classes"
        mend = named if mask.dtype.kind in "ui" else "save it as 8-bit class indices"
        raise Unreadable(f"{error} ({path.parent.name}/{path.name}); {mend}") from error
    return mask.astype(np.uint8)


def check_alike(paths: Sequence[Path]) -> None:
    """Whether masks that may all be meant for one image are one and the same.

    Raises:
        Unreadable: they differ, or one of them cannot be read.
    """
    names = " and ".join(f"{path.parent.name}/{path.name}" for path in paths)
    try:
        first, *others = (_plane(path) for path in paths)
    except (Unreadable, OSError) as error:
        raise Unreadable(f"it has the masks {names}, and {error}; keep one of them") from error
    if not all(np.array_equal(first, other) for other in others):
        raise Unreadable(f"its masks {names} differ; keep one of them")


def _plane(path: Path) -> npt.NDArray[Any]:
    """(h, w) values of a mask file; Unreadable when it has none."""
    mask = _decode(path)
    if mask.ndim == 3:
        colours = mask[:, :, :3] if mask.shape[2] in (3, 4) else mask[:, :, :1]
        if (colours != colours[:, :, :1]).any():
            raise Unreadable(f"the mask {path.name} is colour-coded; {_WANTED}")
        mask = colours[:, :, 0]
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def _decode(path: Path) -> npt.NDArray[Any]:
    if path.suffix.lower() not in MASK_SUFFIXES:
        raise Unreadable(f"the mask {path.name} is not PNG, BMP or TIFF, so its values cannot be exact")
    with decoding(f"mask {path.name}"):
        data = path.read_bytes()
        if path.suffix.lower() in (".tif", ".tiff"):
            return np.asarray(tifffile.imread(io.BytesIO(data)))
        # Pillow hands out the indices of a palette image; libpng would expand them to colours.
        with open_picture(data) as image:
            if image.format == "JPEG":
                raise Unreadable(f"the mask {path.name} is a JPEG, so its values cannot be exact")
            return np.asarray(image)

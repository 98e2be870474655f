"""Reading class-index masks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from pscl_hpc.archive.format import IGNORE_INDEX, Collection, Pixels, check_mask, mask_values
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.images import open_picture

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_WANTED = "a mask is an image of class indices (0, 1, 2, ...; 255 = not annotated)"


def read_mask(
    path: Path, collection: Collection, height: int, width: int, cropped: int
) -> npt.NDArray[np.uint8]:
    """(cropped, width) class indices of an image.

    Args:
        height, width: size of the image file.
        cropped: rows left without the information bar; the mask may have either height.

    Raises:
        Unreadable: the file is damaged or colour-coded, or has another size or unknown classes.
    """
    mask = _plane(path)
    if mask.shape == (height, width):
        mask = mask[:cropped]
    elif mask.shape != (cropped, width):
        size = " x ".join(map(str, mask.shape))
        raise Unreadable(
            f"the mask {path.parent.name}/{path.name} has {size} pixels but the image {height} x {width}; export both at "
            "one size, or use --crop-bottom if an information bar was cut"
        )
    try:
        if mask.dtype.kind == "u" and len(collection.classes) == 2 and mask_values(mask) == [0, IGNORE_INDEX]:
            raise Unreadable(f"the mask {path.name} has the values 0 and 255; {_WANTED}, so use 0 and 1")
        check_mask(mask, cropped, width, collection)
    except ValueError as error:
        fix = "correct the mask, or add the class to splits.json or --classes"
        if mask.dtype.kind not in "ui":
            fix = "save it as 8-bit class indices"
        raise Unreadable(f"{error} ({path.parent.name}/{path.name}); {fix}") from error
    return mask.astype(np.uint8)


def check_equal(paths: Sequence[Path]) -> None:
    """Check that several masks of one image are equal.

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


def _plane(path: Path) -> Pixels:
    """(h, w) values of a mask file; Unreadable if it is colour-coded or damaged."""
    mask = _decode(path)
    if mask.ndim == 3:
        colours = mask[:, :, :3] if mask.shape[2] in (3, 4) else mask[:, :, :1]
        if (colours != colours[:, :, :1]).any():
            raise Unreadable(f"the mask {path.name} is colour-coded; {_WANTED}")
        mask = colours[:, :, 0]
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def _decode(path: Path) -> Pixels:
    if path.suffix.lower() not in MASK_SUFFIXES:
        raise Unreadable(f"the mask {path.name} is not a PNG, BMP or TIFF, so its values are not exact")
    with decoding(f"mask {path.name}"):
        data = path.read_bytes()
        if path.suffix.lower() in (".tif", ".tiff"):
            return np.asarray(tifffile.imread(io.BytesIO(data)))
        # Pillow returns the indices of a palette image; libpng would convert them to colours.
        with open_picture(data) as image:
            if image.format == "JPEG":
                raise Unreadable(f"the mask {path.name} is a JPEG, so its values are not exact")
            return np.asarray(image)

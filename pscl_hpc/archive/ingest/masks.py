"""Reading class-index masks."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL.ImageFile import ImageFile

from pscl_hpc.archive.format import IGNORE_INDEX, Collection, Pixels, check_mask, mask_values
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.images import open_picture
from pscl_hpc.errors import UserError

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
IGNORE = "ignore"
"""In ``--mask-values``, stands for pixels that are not annotated."""
_WANTED = "a mask is an image of class indices (0, 1, 2, ...; 255 = not annotated)"
_WHITE_IS_ZERO, _PALETTE = 0, 3
_PNG_PALETTE = b"\x03"
"""Colour type in the header of a PNG with a palette."""


def read_mask(
    path: Path,
    collection: Collection,
    height: int,
    width: int,
    cropped: int,
    values: Mapping[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """(cropped, width) class indices of an image.

    Args:
        height, width: size of the image file.
        cropped: rows left without the information bar; the mask may have either height.
        values: class index (255 = not annotated) of each value in the file; None if the values are the class indices.

    Raises:
        Unreadable: the file is damaged or colour-coded, or has another size or unknown values.
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
    if values is not None:
        return _translate(mask, values, path)
    if mask.dtype.kind in "ui":
        _check_indices(mask, collection.classes, path)
    try:
        check_mask(mask, cropped, width, collection)
    except ValueError as error:
        fix = "correct the mask, add the class to splits.json or --classes, or give the classes with --mask-values"
        if mask.dtype.kind not in "ui":
            fix = "save it as 8-bit class indices"
        raise Unreadable(f"{error} ({path.parent.name}/{path.name}); {fix}") from error
    return mask.astype(np.uint8)


def parse_mask_values(pairs: Sequence[tuple[str, object]], where: str) -> dict[int, str]:
    """Value of a mask file -> class name or :data:`IGNORE`; UserError names ``where``."""
    found: dict[int, str] = {}
    for value, name in pairs:
        if (
            not re.fullmatch(r"-?\d{1,9}", value.strip(), re.ASCII)
            or not isinstance(name, str)
            or not name.strip()
        ):
            raise UserError(
                f"{where}: {value!r}: {name!r} must be a whole number and a class name or '{IGNORE}'"
            )
        if int(value) in found:
            raise UserError(f"{where}: the value {int(value)} appears twice; keep one of them")
        found[int(value)] = name.strip()
    return found


def classes_of_values(names: Mapping[int, str]) -> tuple[str, ...]:
    """The class names in ``--mask-values``, in the order of their first appearance."""
    return tuple(dict.fromkeys(name for name in names.values() if name != IGNORE))


def class_indices(names: Mapping[int, str], collection: Collection) -> dict[int, int]:
    """Value of a mask file -> class index of the collection; UserError for an unknown class name."""
    classes = collection.classes
    if IGNORE in classes:
        raise UserError(f"--mask-values: {collection.name} has a class named '{IGNORE}'; rename the class")
    for value, name in names.items():
        if name not in (*classes, IGNORE):
            raise UserError(
                f"--mask-values: {value}={name} is not a class of {collection.name} ({', '.join(classes)}); "
                f"correct the name, or write '{IGNORE}' for pixels that are not annotated"
            )
    return {value: IGNORE_INDEX if name == IGNORE else classes.index(name) for value, name in names.items()}


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


def check_palettes(paths: Sequence[Path]) -> None:
    """Check that the palette masks of a collection give each index one colour and each colour one index.

    Programs that make a new palette for every file number the same colours differently.

    Raises:
        UserError: two masks differ. Masks that cannot be read are ignored, because packing reports them.
    """
    colour_of: dict[int, tuple[bytes, Path]] = {}
    index_of: dict[bytes, tuple[int, Path]] = {}
    for path in paths:
        try:
            used = _used_palette(path)
        except (Unreadable, OSError):
            continue
        for index, colour in used.items():
            known, first = colour_of.setdefault(index, (colour, path))
            other = index
            if known == colour and list(used.values()).count(colour) == 1:
                other, first = index_of.setdefault(colour, (index, path))
            if known != colour or other != index:
                raise UserError(
                    f"the masks {first} and {path} have different palettes (index {index} or its colour "
                    f"#{colour.hex()} means another class in the first); save the masks as grey images of class indices"
                )


def _translate(mask: Pixels, values: Mapping[int, int], path: Path) -> npt.NDArray[np.uint8]:
    if mask.dtype.kind not in "ui":
        raise Unreadable(f"the mask {path.name} has {mask.dtype} values; save it as 8-bit class indices")
    result = np.zeros(mask.shape, np.uint8)
    for value in mask_values(mask):
        if value not in values:
            raise Unreadable(
                f"the mask {path.parent.name}/{path.name} has the value {value}, which --mask-values does not list; add "
                f"{value}=CLASS, or {value}={IGNORE} if it means not annotated"
            )
        result[mask == value] = values[value]
    return result


def _check_indices(mask: Pixels, classes: Sequence[str], path: Path) -> None:
    """Unreadable for values that are grey levels rather than class indices.

    0 and 255 are a painted black-and-white mask far more often than an index mask of which only one class is annotated.
    """
    found = mask_values(mask)
    even = np.linspace(0, IGNORE_INDEX, max(2, len(classes)))
    scaled = len(found) == len(classes) > 2 and np.allclose(found, even, atol=1)
    if not (scaled or (IGNORE_INDEX in found and set(found) <= {0, IGNORE_INDEX})):
        return
    values = found if scaled else [0, IGNORE_INDEX]
    shown = ",".join(f"{value}={name}" for value, name in zip(values, classes, strict=False))
    listed = ",".join(f"{index}={name}" for index, name in enumerate(classes))
    raise Unreadable(
        f"the mask {path.parent.name}/{path.name} has only the values {' and '.join(map(str, found))}, so it is not clear "
        f"what {IGNORE_INDEX} means; give the classes of the values with --mask-values {shown}, or "
        f"--mask-values {listed},{IGNORE_INDEX}={IGNORE} if {IGNORE_INDEX} means not annotated"
    )


def _plane(path: Path) -> Pixels:
    """(h, w) values of a mask file; Unreadable if it is colour-coded or damaged."""
    mask = _decode(path)
    if mask.ndim == 3:
        colours = mask[:, :, :3] if mask.shape[2] in (3, 4) else mask[:, :, :1]
        if (colours != colours[:, :, :1]).any():
            raise Unreadable(f"the mask {path.name} is colour-coded; {_WANTED}")
        if mask.shape[2] in (2, 4):
            _check_alpha(colours[:, :, 0], mask[:, :, -1], path)
        mask = colours[:, :, 0]
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def _check_alpha(grey: Pixels, alpha: Pixels, path: Path) -> None:
    """Unreadable when one grey level is transparent in some places and not in others: the classes are in alpha."""
    clear = alpha == 0
    if np.intersect1d(grey[clear], grey[~clear]).size:
        raise Unreadable(
            f"the mask {path.name} is drawn in its transparency (alpha), which is not read; put it on a background of "
            f"another colour and save it without alpha. {_WANTED.capitalize()}"
        )


def _decode(path: Path) -> Pixels:
    if path.suffix.lower() not in MASK_SUFFIXES:
        raise Unreadable(f"the mask {path.name} is not a PNG, BMP or TIFF, so its values are not exact")
    with decoding(f"mask {path.name}"):
        data = path.read_bytes()
        if path.suffix.lower() in (".tif", ".tiff"):
            return _decode_tiff(data, path.name)
        # Pillow returns the indices of a palette image; libpng would convert them to colours.
        with open_picture(data) as image:
            if image.format == "JPEG":
                raise Unreadable(f"the mask {path.name} is a JPEG, so its values are not exact")
            return np.asarray(image)


def _decode_tiff(data: bytes, name: str) -> Pixels:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        mask = np.asarray(file.asarray())
        if file.pages.first.photometric != _WHITE_IS_ZERO:
            return mask
    # As viewers show it: in a black-and-white mask, white is the class.
    if mask.dtype != bool:
        raise Unreadable(
            f"the mask {name} is stored with white as zero, so it is not clear whether its values are inverted; save it "
            "with black as zero"
        )
    return ~mask


def _used_palette(path: Path) -> dict[int, bytes]:
    """Index -> RGB of the palette entries that a mask uses; empty without a palette."""
    with decoding(f"mask {path.name}"):
        if path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as file:
                page = file.pages.first
                if page.photometric != _PALETTE or page.colormap is None:
                    return {}
                colours = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
                indices = page.asarray()
        else:
            with path.open("rb") as stream:
                head = stream.read(26)
                if head.startswith(b"\x89PNG") and head[25:] != _PNG_PALETTE:
                    return {}
                data = head + stream.read()
            with open_picture(data) as image:
                if image.mode != "P":
                    return {}
                colours, indices = _palette(image), np.asarray(image)
        return {index: colours[index].tobytes() for index in mask_values(indices) if index < len(colours)}


def _palette(image: ImageFile) -> npt.NDArray[np.uint8]:
    """(n, 3) colours."""
    return np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)

"""The options of commands for reading image files and masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pscl_hpc.errors import UserError

if TYPE_CHECKING:
    from pscl_hpc.archive.ingest.mask_values import Key

COLOUR_HELP = "Colour images: 'keep' the colour or reduce it to 'luma'."
CROP_HELP = "Rows to cut from the bottom edge (information bar), or 'auto'."
PAGE_HELP = "Page to read of files with several, from 0, or 'all'."
RANGE_HELP = "Intensity range of 16-bit and float images: one per 'image', or one for the 'collection'."
PERCENTILES_HELP = "Percentiles that become black and white in 16-bit and float images."


def luma(colour: str) -> bool:
    """``--colour``: whether colour is reduced to luma."""
    if colour not in ("keep", "luma"):
        raise UserError(f"--colour is {colour!r}; choose 'keep' or 'luma'")
    return colour == "luma"


def rows_to_crop(text: str) -> int:
    """``--crop-bottom``: rows, or ``AUTO_CROP``."""
    from pscl_hpc.archive.options import AUTO_CROP, MAX_SIDE

    if text == "auto":
        return AUTO_CROP
    # int() would accept other digits and spaces, and fail for very long numbers.
    if not (text.isascii() and text.isdecimal() and len(text) <= 8 and int(text) <= MAX_SIDE):
        raise UserError(f"--crop-bottom is {text!r}; give a number of rows or 'auto'")
    return int(text)


def page_number(text: str) -> int:
    """``--page``: a number, or ``ALL_PAGES``."""
    from pscl_hpc.archive.options import ALL_PAGES, MAX_PAGES

    if text == "all":
        return ALL_PAGES
    if not (text.isascii() and text.isdecimal() and len(text) <= 8 and int(text) < MAX_PAGES):
        raise UserError(f"--page is {text!r}; give the number of a page, from 0, or 'all'")
    return int(text)


def common_range(text: str) -> bool:
    """``--range``: whether a collection has one intensity range."""
    if text not in ("image", "collection"):
        raise UserError(f"--range is {text!r}; choose 'image' or 'collection'")
    return text == "collection"


def two_percentiles(text: str) -> tuple[float, float]:
    """``--percentiles``: (lower, upper)."""
    low, high = two_numbers("--percentiles", text, "two percentiles such as 0.5,99.5")
    if not 0 <= low < high <= 100:
        raise UserError(
            f"--percentiles is {text}; the first must be below the second and both between 0 and 100"
        )
    return low, high


def two_numbers(option: str, text: str, what: str) -> tuple[float, float]:
    """Two numbers separated by a comma; UserError names the option and ``what`` it expects."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} is {text!r}; give {what}") from None
    return first, second


def image_and_mask_folder(
    sources: list[Path] | None, images: Path | None, masks: Path | None
) -> tuple[Path, Path] | None:
    """``--images`` and ``--masks``."""
    if (images is None) != (masks is None):
        raise UserError("--images and --masks belong together; give both folders")
    if images is None or masks is None:
        if not sources:
            raise UserError("no source is given; name image files or folders, or --images DIR --masks DIR")
        return None
    return images, masks


def values_of_masks(text: str) -> dict[Key, str]:
    """``--mask-values``: value -> class name."""
    from pscl_hpc.archive.ingest.mask_values import parse_mask_values

    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if without := [part for part, sign, _ in pairs if not sign]:
        raise UserError(
            f"--mask-values: {without[0]!r} is not VALUE=CLASS; write for example 0=matrix,255=carbide"
        )
    return parse_mask_values([(value, name) for value, _, name in pairs], "--mask-values")

"""The options by which an image file becomes pixels of an archive, and how archives and runs record them.

The record is a JSON object with the names of the options of ``archive build``:
``{"percentiles": [0.5, 99.5], "colour": "keep", "crop_bottom": 0}``, with ``page`` and ``range`` unless they have their
default. It is read from files that are not trusted, so anything else is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

AUTO_CROP = -1
"""Value of ``crop_bottom`` for finding the information bar of each image."""
ALL_PAGES = -1
"""Value of ``page`` for every page of a file, except pages that show another one again."""
MAX_SIDE = 1 << 24
"""Longest side of an image in pixels."""
MAX_PAGES = 1 << 20
"""Pages of a file."""
_MAX_RECORD = 1000
"""Characters of a record; those that are written have about 80."""


@dataclass(frozen=True)
class IngestOptions:
    """How the pixels of a file become the stored pixels and their intensity range, by default as in ``archive build``.

    Raises:
        ValueError: a value is out of range.
    """

    percentiles: tuple[float, float] = (0.5, 99.5)
    """Percentiles that are black and white in uint16 and float images."""
    luma: bool = False
    """Reduce colour to BT.601 luma."""
    crop_bottom: int = 0
    """Rows to cut from the bottom edge, or :data:`AUTO_CROP`."""
    page: int = ALL_PAGES
    """The only page to read of files with several, or :data:`ALL_PAGES`."""
    common_range: bool = False
    """One intensity range for all 16-bit or float images of a collection, instead of one per image."""

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must satisfy 0 <= low < high <= 100, got {self.percentiles}")
        if not (self.crop_bottom == AUTO_CROP or 0 <= self.crop_bottom <= MAX_SIDE):
            raise ValueError(f"crop_bottom must be a number of rows, got {self.crop_bottom}")
        if not (self.page == ALL_PAGES or 0 <= self.page < MAX_PAGES):
            raise ValueError(f"page must be a number from 0, got {self.page}")

    def flags(self) -> dict[str, str]:
        """Field -> the option of ``archive build`` that sets it."""
        percentiles = ",".join(str(value).removesuffix(".0") for value in self.percentiles)
        crop = "auto" if self.crop_bottom == AUTO_CROP else str(self.crop_bottom)
        return {
            "percentiles": f"--percentiles {percentiles}",
            "luma": f"--colour {'luma' if self.luma else 'keep'}",
            "crop_bottom": f"--crop-bottom {crop}",
            "page": f"--page {'all' if self.page == ALL_PAGES else self.page}",
            "common_range": f"--range {'collection' if self.common_range else 'image'}",
        }

    def __str__(self) -> str:
        unusual = {"page": self.page != ALL_PAGES, "common_range": self.common_range}
        return " ".join(flag for name, flag in self.flags().items() if unusual.get(name, True))


def differing(recorded: IngestOptions, wanted: IngestOptions, *, dtype: str, channels: int) -> list[str]:
    """Fields for which ``wanted`` would, or might, have given other pixels than ``recorded`` did.

    Args:
        dtype, channels: of the stored image.
    """
    found = []
    if dtype != "uint8" and recorded.percentiles != wanted.percentiles:
        found.append("percentiles")
    if recorded.luma != wanted.luma and (recorded.luma or channels == 3):
        found.append("luma")
    if recorded.crop_bottom != wanted.crop_bottom:
        found.append("crop_bottom")
    if recorded.page != wanted.page:
        found.append("page")
    if dtype != "uint8" and recorded.common_range != wanted.common_range:
        found.append("common_range")
    return found


def options_to_tree(options: IngestOptions) -> dict[str, Any]:
    """The record of the options, as plain values for JSON."""
    tree: dict[str, Any] = {
        "percentiles": [float(value) for value in options.percentiles],
        "colour": "luma" if options.luma else "keep",
        "crop_bottom": "auto" if options.crop_bottom == AUTO_CROP else options.crop_bottom,
    }
    if options.page != ALL_PAGES:
        tree["page"] = options.page
    if options.common_range:
        tree["range"] = "collection"
    return tree


def options_from_tree(tree: object) -> IngestOptions:
    """The inverse of :func:`options_to_tree`; ValueError for anything else."""
    if not isinstance(tree, dict) or tree.keys() - {"page", "range"} != {
        "percentiles",
        "colour",
        "crop_bottom",
    }:
        raise ValueError("the ingest options must have the keys percentiles, colour and crop_bottom")
    percentiles, colour, crop = tree["percentiles"], tree["colour"], tree["crop_bottom"]
    if not isinstance(percentiles, list) or len(percentiles) != 2 or not all(map(_is_number, percentiles)):
        raise ValueError("the ingest option percentiles must be two numbers")
    if colour not in ("keep", "luma"):
        raise ValueError("the ingest option colour must be keep or luma")
    if crop != "auto" and (type(crop) is not int or not 0 <= crop <= MAX_SIDE):
        raise ValueError("the ingest option crop_bottom must be a number of rows or auto")
    page, common = tree.get("page", ALL_PAGES), tree.get("range", "image")
    if "page" in tree and (type(page) is not int or not 0 <= page < MAX_PAGES):
        raise ValueError("the ingest option page must be a number from 0")
    if common not in ("image", "collection"):
        raise ValueError("the ingest option range must be image or collection")
    low, high = (float(value) for value in percentiles)
    rows = AUTO_CROP if crop == "auto" else crop
    return IngestOptions((low, high), colour == "luma", rows, page, common == "collection")


def options_to_json(options: IngestOptions) -> str:
    """The record of the options in the index of an archive."""
    return json.dumps(options_to_tree(options))


@lru_cache(maxsize=256)
def options_from_json(text: str) -> IngestOptions | None:
    """The inverse of :func:`options_to_json`, None for ``""``; ValueError for any other text."""
    if not text:
        return None
    if len(text) > _MAX_RECORD:
        raise ValueError(f"the ingest options have {len(text)} characters")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("the ingest options are not JSON") from error
    return options_from_tree(tree)


def _is_number(value: object) -> bool:
    # Compared before conversion: JSON integers may exceed the range of a float.
    return type(value) in (int, float) and 0 <= value <= 100 and math.isfinite(value)  # type: ignore[operator,arg-type]

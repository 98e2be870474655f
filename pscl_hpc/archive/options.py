"""The options by which an image file becomes pixels of an archive, and how an archive and a run record them.

The record is a JSON object of the words that the flags of ``archive build`` have:
``{"percentiles": [0.5, 99.5], "colour": "keep", "crop_bottom": 0}``. It comes from files that anyone may have written,
so anything else is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

AUTO_CROP = -1
"""``crop_bottom`` that finds the information bar of each image by itself."""
MAX_CROP = 1 << 24
"""As many rows as an image of an archive may have."""
_LONGEST = 1000
"""Characters of a record; what is written has about 80."""


@dataclass(frozen=True)
class IngestOptions:
    """What makes the stored pixels, and their black and white, from those of a file; the defaults of ``archive build``.

    Raises:
        ValueError: a value is out of its range.
    """

    percentiles: tuple[float, float] = (0.5, 99.5)
    """Intensity range of uint16 and float images."""
    luma: bool = False
    """Reduce true colour to BT.601 luma."""
    crop_bottom: int = 0
    """Rows to cut from the bottom edge, or :data:`AUTO_CROP`."""

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must satisfy 0 <= low < high <= 100, got {self.percentiles}")
        if not (self.crop_bottom == AUTO_CROP or 0 <= self.crop_bottom <= MAX_CROP):
            raise ValueError(f"crop_bottom must be a number of rows, got {self.crop_bottom}")

    def flags(self) -> dict[str, str]:
        """Field -> the flag of ``archive build`` that sets it so."""
        percentiles = ",".join(str(value).removesuffix(".0") for value in self.percentiles)
        crop = "auto" if self.crop_bottom == AUTO_CROP else str(self.crop_bottom)
        return {
            "percentiles": f"--percentiles {percentiles}",
            "luma": f"--colour {'luma' if self.luma else 'keep'}",
            "crop_bottom": f"--crop-bottom {crop}",
        }

    def __str__(self) -> str:
        return " ".join(self.flags().values())


def differing(recorded: IngestOptions, wanted: IngestOptions, *, dtype: str, channels: int) -> list[str]:
    """Fields by which an image that was packed with ``recorded`` is, or may be, another than with ``wanted``.

    Args:
        dtype, channels: of the image, as it is stored.
    """
    found = []
    if dtype != "uint8" and recorded.percentiles != wanted.percentiles:
        found.append("percentiles")
    if recorded.luma != wanted.luma and (recorded.luma or channels == 3):
        found.append("luma")
    if recorded.crop_bottom != wanted.crop_bottom:
        found.append("crop_bottom")
    return found


def options_to_tree(options: IngestOptions) -> dict[str, Any]:
    """The record of the options, as plain values for JSON."""
    return {
        "percentiles": [float(value) for value in options.percentiles],
        "colour": "luma" if options.luma else "keep",
        "crop_bottom": "auto" if options.crop_bottom == AUTO_CROP else options.crop_bottom,
    }


def options_from_tree(tree: object) -> IngestOptions:
    """The inverse of :func:`options_to_tree`; ValueError when it is anything else."""
    if not isinstance(tree, dict) or tree.keys() != {"percentiles", "colour", "crop_bottom"}:
        raise ValueError("the ingest options are not percentiles, colour and crop_bottom")
    percentiles, colour, crop = tree["percentiles"], tree["colour"], tree["crop_bottom"]
    if not isinstance(percentiles, list) or len(percentiles) != 2 or not all(map(_is_number, percentiles)):
        raise ValueError("the ingest option percentiles is not two numbers")
    if colour not in ("keep", "luma"):
        raise ValueError("the ingest option colour is neither keep nor luma")
    if crop != "auto" and (type(crop) is not int or not 0 <= crop <= MAX_CROP):
        raise ValueError("the ingest option crop_bottom is neither a number of rows nor auto")
    low, high = (float(value) for value in percentiles)
    return IngestOptions((low, high), colour == "luma", AUTO_CROP if crop == "auto" else crop)


def options_to_json(options: IngestOptions) -> str:
    """The record of the options, as an archive keeps it for each image."""
    return json.dumps(options_to_tree(options))


@lru_cache(maxsize=256)
def options_from_json(text: str) -> IngestOptions | None:
    """The inverse of :func:`options_to_json`, None for ``""``; ValueError when it is anything else."""
    if not text:
        return None
    if len(text) > _LONGEST:
        raise ValueError(f"the ingest options have {len(text)} characters")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("the ingest options are not JSON") from error
    return options_from_tree(tree)


def _is_number(value: object) -> bool:
    # Compared before it becomes a float: JSON has integers beyond the range of one.
    return type(value) in (int, float) and 0 <= value <= 100 and math.isfinite(value)  # type: ignore[operator,arg-type]

"""The flags that say how image files become pixels: the same words for ``archive build`` and ``predict``."""

from __future__ import annotations

from pscl_hpc.errors import UserError

COLOUR_HELP = "True colour: 'keep' it or reduce it to 'luma'."
CROP_HELP = "Information bar at the bottom edge: rows to cut, or 'auto'."
PERCENTILES_HELP = "Percentiles of 16-bit and float images that become black and white."


def luma(colour: str) -> bool:
    """``--colour``: whether true colour becomes luma."""
    if colour not in ("keep", "luma"):
        raise UserError(f"--colour is {colour!r}; choose 'keep' or 'luma'")
    return colour == "luma"


def rows_to_crop(text: str) -> int:
    """``--crop-bottom``: rows, or ``AUTO_CROP``."""
    from pscl_hpc.archive.options import AUTO_CROP, MAX_CROP

    if text == "auto":
        return AUTO_CROP
    # ASCII alone and no more digits than MAX_CROP has: int() would refuse, or take, stranger things.
    if not (text.isascii() and text.isdecimal() and len(text) <= 8 and int(text) <= MAX_CROP):
        raise UserError(f"--crop-bottom is {text!r}; give a number of rows or 'auto'")
    return int(text)


def two_percentiles(text: str) -> tuple[float, float]:
    """``--percentiles``: the lower and the upper one."""
    low, high = two_numbers("--percentiles", text, "two percentiles such as 0.5,99.5")
    if not 0 <= low < high <= 100:
        raise UserError(f"--percentiles is {text}; the first must be the lower and both within 0 and 100")
    return low, high


def two_numbers(option: str, text: str, what: str) -> tuple[float, float]:
    """Two numbers with a comma between; UserError names the flag and ``what`` it wants."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} is {text!r}; give {what}") from None
    return first, second

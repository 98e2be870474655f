"""Counts along test lines: every row, column and diagonal of the image is a line.

The four directions stand for all directions, as directed test lines do in ASTM E112.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""(rows, columns) from a pixel to the next one on a line."""


@dataclass(frozen=True)
class LineCount:
    """Changes along the lines of each direction, and the length of these lines in pixels."""

    changes: tuple[int, ...]
    lengths: tuple[float, ...]

    @property
    def per_pixel(self) -> float | None:
        """Changes per pixel of line, averaged over the directions; None without lines."""
        if not all(self.lengths):
            return None
        ratios = [count / length for count, length in zip(self.changes, self.lengths, strict=True)]
        return sum(ratios) / len(ratios)


def count_changes(values: npt.NDArray[Any], known: npt.NDArray[np.bool_]) -> LineCount:
    """Pairs of neighbours on a line that differ.

    Args:
        values: (h, w), for example labels of grains, or whether a pixel is in a phase.
        known: (h, w), pixels that lines may touch.
    """
    changes, lengths = [], []
    for down, across in _STEPS:
        first, second = _shifted(values, down, across)
        one, other = _shifted(known, down, across)
        both = one & other
        changes.append(int(((first != second) & both).sum()))
        lengths.append(int(both.sum()) * math.hypot(down, across))
    return LineCount(tuple(changes), tuple(lengths))


def total(counts: list[LineCount]) -> LineCount:
    """The counts of several images together; ValueError without any."""
    return LineCount(
        tuple(map(sum, zip(*(count.changes for count in counts), strict=True))),
        tuple(map(sum, zip(*(count.lengths for count in counts), strict=True))),
    )


def scaled(count: LineCount, factor: float) -> LineCount:
    """The same lines with lengths in another unit, ``factor`` of them per pixel."""
    return LineCount(count.changes, tuple(length * factor for length in count.lengths))


def _shifted(array: npt.NDArray[Any], down: int, across: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    height, width = array.shape
    first = array[: height - down, max(0, -across) : width - max(0, across)]
    second = array[down:, max(0, across) : width + min(0, across)]
    return first, second

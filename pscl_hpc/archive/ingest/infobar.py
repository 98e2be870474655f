"""The information bar that scanning electron microscopes burn into the bottom of an image.

A bar spans the whole width, begins at a straight edge, has one flat background and carries text. All four
are required, so that a dark crack or a bright phase at the bottom edge is not mistaken for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 0.25
"""Largest share of the height that a bar may have."""
_SMALLEST_ROWS = 8
_PURE = 0.97
"""Share of background in a row without text."""
_FLAT = 3 / 255
"""Half width of the background's intensity band, as a share of the full range; leaves room for JPEG noise."""


def bar_height(bottom: npt.NDArray[Any], height: int, full_range: float) -> int:
    """Rows of the information bar at the bottom edge of an image, 0 when there is none.

    Args:
        bottom: (rows, w) or (rows, w, c), the lowest rows of the image, at least :data:`LARGEST` of its height.
        height: height of the whole image.
        full_range: intensity of white.
    """
    if not np.isfinite(full_range):
        full_range = float(bottom[np.isfinite(bottom)].max(initial=0.0)) or 1.0
    grey = np.nan_to_num(bottom.astype(np.float32), nan=0.0, posinf=full_range, neginf=0.0)
    if grey.ndim == 3:
        grey = grey.mean(axis=2)
    limit = int(height * LARGEST)
    rows = len(grey)
    if limit < _SMALLEST_ROWS or rows <= limit:
        return 0
    tolerance = _FLAT * full_range
    background = _most_common(grey[-_SMALLEST_ROWS * 2 :], full_range)
    flat = (np.abs(grey - background) <= tolerance).mean(axis=1)

    # Text rows and separator lines interrupt the background, so the top is sought from above: the highest row
    # of pure background, or the frame line over it, with image right above and background on the whole below.
    for top in range(rows - limit, rows - _SMALLEST_ROWS):
        if flat[top] < _PURE:
            continue
        start = _over_frame(grey, top, tolerance)
        above = flat[max(0, start - 4) : start]
        inside = flat[top:]
        is_bar = inside.mean() >= 0.6 and (inside >= _PURE).mean() >= 0.15
        if is_bar and above.max(initial=0) < 0.6 and _has_text(grey[top:], background, full_range):
            return rows - start
    return 0


def _most_common(values: npt.NDArray[np.float32], full_range: float) -> float:
    histogram, edges = np.histogram(values, bins=256, range=(0.0, full_range))
    peak = int(histogram.argmax())
    inside = values[(values >= edges[peak]) & (values <= edges[peak + 1])]
    return float(np.median(inside)) if inside.size else float(edges[peak])


def _over_frame(grey: npt.NDArray[np.float32], top: int, tolerance: float) -> int:
    """The first row of a frame line, up to 6 rows of one intensity right above ``top``; else ``top``."""
    for start in range(max(1, top - 6), top):
        if np.ptp(grey[start:top]) <= 2 * tolerance:
            return start
    return top


def _has_text(bar: npt.NDArray[np.float32], background: float, full_range: float) -> bool:
    ink = (np.abs(bar - background) > full_range / 4).mean()
    return bool(0.002 <= ink <= 0.4)

"""From a page of a file to the image that is stored: one or three channels, without the information bar.

The information bar that scanning electron microscopes draw at the bottom of an image spans the whole width, begins at a
straight edge, has one flat background and contains text. All four are required, so that a dark crack or a bright phase
at the bottom edge is not mistaken for a bar.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from pscl_hpc.archive.format import Pixels
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.page import Page, cut_rows, single_channel
from pscl_hpc.archive.options import AUTO_CROP, IngestOptions

_LARGEST = 0.25
"""Largest height of an information bar as a share of the image height."""
_SMALLEST_ROWS = 8
_PURE = 0.97
"""Smallest share of background in a row without text."""
_FLAT = 3 / 255
"""Tolerance of the background intensity as a share of the full range; allows for JPEG noise."""


@dataclass(frozen=True)
class Prepared:
    """A page as it is stored."""

    image: Page
    bar: Page | None
    """The rows cut from the bottom edge, None if none were cut."""

    @property
    def cut(self) -> int:
        """Number of rows cut."""
        return self.bar.height if self.bar is not None else 0


def prepare(page: Page, options: IngestOptions) -> Prepared:
    """Apply ``options`` to a page.

    Raises:
        Unreadable: the page is damaged, or has too few rows to cut.
    """
    page = single_channel(page, luma=options.luma)
    cut = _rows_to_cut(page, options.crop_bottom)
    if not cut:
        return Prepared(page, None)
    kept = page.height - cut
    return Prepared(cut_rows(page, 0, kept), cut_rows(page, kept, page.height))


def sensitive_to(image: Page, fields: Collection[str]) -> set[str]:
    """Those of ``fields`` of :class:`IngestOptions` for which another value could have given other pixels.

    For ``crop_bottom``, only information bars that automatic cropping finds are considered.

    Args:
        image: the prepared page.
        fields: names of fields.
    """
    found = set()
    if "percentiles" in fields and image.dtype != "uint8" and image.intensity is None:
        found.add("percentiles")
    if "luma" in fields and image.channels == 3:
        found.add("luma")
    if "page" in fields and image.total > 1:
        found.add("page")
    if "crop_bottom" in fields and _rows_to_cut(image, AUTO_CROP):
        found.add("crop_bottom")
    return found


def _rows_to_cut(page: Page, wanted: int) -> int:
    if wanted == AUTO_CROP:
        start = max(0, page.height - int(page.height * _LARGEST) - 16)
        bottom = page.rows(start, page.height)
        full = {"uint8": 255.0, "uint16": 65535.0}.get(
            page.dtype, float(np.nanmax(bottom, initial=0.0)) or 1.0
        )
        return bar_height(bottom, page.height, page.intensity[1] if page.intensity else full)
    if wanted >= page.height:
        raise Unreadable(f"it has {page.height} rows, no more than the {wanted} to be cropped")
    return wanted


def bar_height(bottom: Pixels, height: int, full_range: float) -> int:
    """Rows of the information bar at the bottom edge of an image, 0 without one.

    Args:
        bottom: (rows, w) or (rows, w, c), the lowest rows of the image, more than a quarter of its height.
        height: height of the whole image.
        full_range: intensity of white.
    """
    if not np.isfinite(full_range):
        full_range = float(bottom[np.isfinite(bottom)].max(initial=0.0)) or 1.0
    grey = np.nan_to_num(bottom.astype(np.float32), nan=0.0, posinf=full_range, neginf=0.0)
    if grey.ndim == 3:
        grey = grey.mean(axis=2)
    limit = int(height * _LARGEST)
    rows = len(grey)
    if limit < _SMALLEST_ROWS or rows <= limit:
        return 0
    tolerance = _FLAT * full_range
    background = _most_common(grey[-_SMALLEST_ROWS * 2 :], full_range)
    flat = (np.abs(grey - background) <= tolerance).mean(axis=1)

    # Text and separator lines interrupt the background, so the search goes from above: the top is the highest row of
    # pure background, or the frame line above it, with image above and mostly background below.
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


def _most_common(values: Pixels, full_range: float) -> float:
    histogram, edges = np.histogram(values, bins=256, range=(0.0, full_range))
    peak = int(histogram.argmax())
    inside = values[(values >= edges[peak]) & (values <= edges[peak + 1])]
    return float(np.median(inside)) if inside.size else float(edges[peak])


def _over_frame(grey: Pixels, top: int, tolerance: float) -> int:
    """The first row of a frame line (up to 6 rows of one intensity) directly above ``top``; else ``top``."""
    for start in range(max(1, top - 6), top):
        if np.ptp(grey[start:top]) <= 2 * tolerance:
            return start
    return top


def _has_text(bar: Pixels, background: float, full_range: float) -> bool:
    ink = (np.abs(bar - background) > full_range / 4).mean()
    return bool(0.002 <= ink <= 0.4)

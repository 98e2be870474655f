"""From a page of a file to the image that an archive holds: one channel or three, with or without its lowest rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.infobar import LARGEST, bar_height
from pscl_hpc.archive.ingest.page import Page, RowsPage, single_channel
from pscl_hpc.archive.options import AUTO_CROP, IngestOptions


@dataclass(frozen=True)
class Prepared:
    """A page as it is stored."""

    image: Page
    bar: Page | None
    """The rows that were cut from the bottom edge, None where none were."""

    @property
    def cut(self) -> int:
        """Rows that were cut."""
        return self.bar.height if self.bar is not None else 0


def prepare(page: Page, options: IngestOptions) -> Prepared:
    """What an archive that is built with ``options`` holds of a page, and what it leaves out.

    Raises:
        Unreadable: the page is damaged, or has no more rows than are to be cut.
    """
    page = single_channel(page, luma=options.luma)
    cut = _rows_to_cut(page, options.crop_bottom)
    if not cut:
        return Prepared(page, None)
    kept = page.height - cut
    return Prepared(RowsPage(page, 0, kept), RowsPage(page, kept, page.height))


def sensitive_to(image: Page, fields: Collection[str]) -> set[str]:
    """Which of these fields of :class:`IngestOptions` could, with other values, have made another image of a page.

    Bars that cannot be found by themselves are not thought of.

    Args:
        image: The page as it was prepared.
        fields: Names of fields.
    """
    found = set()
    if "percentiles" in fields and image.dtype != "uint8" and image.intensity is None:
        found.add("percentiles")
    if "luma" in fields and image.channels == 3:
        found.add("luma")
    if "crop_bottom" in fields and _rows_to_cut(image, AUTO_CROP):
        found.add("crop_bottom")
    return found


def _rows_to_cut(page: Page, wanted: int) -> int:
    if wanted == AUTO_CROP:
        start = max(0, page.height - int(page.height * LARGEST) - 16)
        bottom = page.rows(start, page.height)
        full = {"uint8": 255.0, "uint16": 65535.0}.get(
            page.dtype, float(np.nanmax(bottom, initial=0.0)) or 1.0
        )
        return bar_height(bottom, page.height, page.intensity[1] if page.intensity else full)
    if wanted >= page.height:
        raise Unreadable(f"it has {page.height} rows, no more than the {wanted} to be cropped")
    return wanted

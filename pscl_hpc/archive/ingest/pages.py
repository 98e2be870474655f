"""Which pages of a file are packed: not those that show another page again, smaller or in another form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pscl_hpc.archive.duplicates import Thumbnail, Thumbnailer
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.few_values import has_few_values
from pscl_hpc.archive.ingest.page import Page
from pscl_hpc.archive.options import ALL_PAGES

_SMALLER, _SAME_SIZE = 0.95, 0.9
"""Correlation of thumbnails from which a page shows another one again; a coloured overlay changes more than a reduction."""
_FEW_PAGES = 8
"""A file of at most so many pages may have an image and masks of it; larger ones are stacks of images."""
_DEPTHS = {"uint8": 8, "uint16": 16, "float32": 32}


def choose(pages: Sequence[Page], wanted: int) -> list[Page]:
    """The pages to pack, in their order; the first says what was left out.

    Args:
        pages: all pages of the file.
        wanted: number of the only page to pack if the file has several, or ``ALL_PAGES``.

    Raises:
        Unreadable: there is no such page, or the pages have several sizes or types and none is a copy.
    """
    if wanted != ALL_PAGES and len(pages) > 1:
        chosen = [page for page in pages if page.number == wanted]
        if not chosen:
            numbers = ", ".join(str(page.number) for page in pages)
            raise Unreadable(f"it has no page {wanted}; choose one of {numbers} with --page")
        return chosen
    if len({_kind(page) for page in pages}) == 1:
        _check_alike(pages)
        return list(pages)
    thumbnails = {page.number: _thumbnail(page) for page in pages}
    kept: list[Page] = []
    copies: list[str] = []
    for page in sorted(pages, key=_preference):
        original = next((other for other in kept if _shows_again(page, other, thumbnails)), None)
        if original is None:
            kept.append(page)
        else:
            copies.append(
                f"page {page.number} ({_text(page)}) shows page {original.number} ({_text(original)})"
            )
    kept.sort(key=lambda page: page.number)
    if len({_kind(page) for page in kept}) > 1:
        listed = "; ".join(f"{page.number}: {_text(page)}" for page in pages)
        raise Unreadable(
            f"its pages are of different kinds ({listed}); choose one with --page, such as --page {pages[0].number}"
        )
    kept[0].left_out = f"{' and '.join(copies)} again and is not packed; --page chooses another page"
    return kept


def _check_alike(pages: Sequence[Page]) -> None:
    """Unreadable if some of a few pages of one kind look like masks, and others do not."""
    if not 1 < len(pages) <= _FEW_PAGES:
        return
    masks = [page.number for page in pages if has_few_values(page)]
    if 0 < len(masks) < len(pages):
        first = next(page.number for page in pages if page.number not in masks)
        which = f"page {masks[0]} looks like a mask" if len(masks) == 1 else f"pages {masks} look like masks"
        raise Unreadable(
            f"{which} and page {first} does not; choose the image with --page {first} and save the mask as a file, or save "
            "each page as a file"
        )


def _kind(page: Page) -> tuple[int, int, str, int]:
    return page.height, page.width, page.dtype, page.channels


def _text(page: Page) -> str:
    colour = "colour" if page.channels == 3 else "grey"
    return f"{page.height} x {page.width}, {_DEPTHS[page.dtype]}-bit {colour}"


def _preference(page: Page) -> tuple[int, int, int, int]:
    """Sorts the largest page first, then the deepest, then grey before colour."""
    return -page.height * page.width, -_DEPTHS[page.dtype], page.channels, page.number


def _shows_again(page: Page, other: Page, thumbnails: dict[int, Thumbnail]) -> bool:
    same_size = (page.height, page.width) == (other.height, other.width)
    if _kind(page) == _kind(other) or abs(page.height - page.width * other.height / other.width) > 1.5:
        return False
    correlation = float(np.sum(thumbnails[page.number] * thumbnails[other.number]))
    return correlation >= (_SAME_SIZE if same_size else _SMALLER)


def _thumbnail(page: Page) -> Thumbnail:
    thumbnailer = Thumbnailer(page.height, page.width)
    for strip in page.strips():
        thumbnailer.add(strip)
    return thumbnailer.thumbnail()

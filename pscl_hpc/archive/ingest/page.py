"""One image of a file, read by rows, and derived images: grey, cropped or upright."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from pscl_hpc.archive.format import TILE, Pixels
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.grey import LUMA

ORIENTATION = 274
"""Number of the orientation tag in EXIF 2.3 and TIFF 6.0."""
_LARGEST_FLOAT64 = np.finfo(np.float64).max
_MAX_WHOLE = 1 << 31
"""Bytes of a page whose rows become columns, which needs all of it in memory."""


_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""How an orientation is undone: whether rows and columns are swapped, then rows reversed, columns reversed."""


class Page(ABC):
    """One image of a file, readable by rows.

    Attributes:
        height, width, channels: channels is 1 or 3, without alpha.
        dtype: ``"uint8"``, ``"uint16"`` or ``"float32"``.
        intensity: (low, high) if the file declares that fewer bits are used, else None.
        um_per_pixel, magnification: from the tags of the file, else None.
        number, total: number of the page in its file, from 0, and the pages of the file, without thumbnails.
        left_out: sentence on pages of the file that are not packed.
    """

    height: int
    width: int
    channels: int
    dtype: str
    intensity: tuple[float, float] | None = None
    um_per_pixel: float | None = None
    magnification: float | None = None
    number: int = 0
    total: int = 1
    left_out: str = ""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Pixels:
        """(stop - start, width, channels) pixels in ``dtype``; Unreadable if the file is damaged."""

    def strips(self) -> Iterator[Pixels]:
        """All rows, 256 at a time."""
        for start in range(0, self.height, TILE):
            yield self.rows(start, min(start + TILE, self.height))


class ArrayPage(Page):
    """A page in memory, (h, w, channels)."""

    def __init__(self, pixels: Pixels) -> None:
        pixels = to_stored(pixels)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if pixels.ndim != 3 or pixels.size == 0:
            raise Unreadable(f"the image has the shape {pixels.shape}")
        self._pixels = drop_alpha(pixels)
        self.height, self.width, self.channels = self._pixels.shape
        self.dtype = self._pixels.dtype.name

    def rows(self, start: int, stop: int) -> Pixels:
        return self._pixels[start:stop]


_ATTRIBUTES = (
    "height", "width", "channels", "dtype", "intensity", "um_per_pixel", "magnification", "number", "total", "left_out",
)  # fmt: skip


class PageView(Page):
    """A page derived from another by a function (start, stop) -> rows; keeps its tags."""

    def __init__(self, page: Page, rows: Callable[[int, int], Pixels], **changed: int) -> None:
        for name in _ATTRIBUTES:
            setattr(self, name, changed.get(name, getattr(page, name)))
        self._rows = rows

    def rows(self, start: int, stop: int) -> Pixels:
        return self._rows(start, stop)


def cut_rows(page: Page, first: int, last: int) -> Page:
    """Rows ``first`` to ``last`` (exclusive) of a page."""
    return PageView(page, lambda start, stop: page.rows(first + start, first + stop), height=last - first)


def upright(page: Page, orientation: object) -> Page:
    """The page as viewers show it, by its orientation tag; invalid values are ignored.

    Raises:
        Unreadable: rows become columns and the page is too large for memory.
    """
    if not isinstance(orientation, int) or orientation not in _TURNS:
        return page
    swap, reverse_rows, reverse_columns = _TURNS[orientation]
    height, width = (page.width, page.height) if swap else (page.height, page.width)
    if swap and height * width * page.channels * np.dtype(page.dtype).itemsize > _MAX_WHOLE:
        raise Unreadable(
            f"its orientation tag ({int(orientation)}) requires a rotation, for which {page.width} x {page.height} "
            "pixels are too many; save it upright"
        )

    @cache
    def swapped() -> Pixels:
        return page.rows(0, page.height).swapaxes(0, 1)

    def rows(start: int, stop: int) -> Pixels:
        if reverse_rows:
            start, stop = height - stop, height - start
        pixels = swapped()[start:stop] if swap else page.rows(start, stop)
        return pixels[:: -1 if reverse_rows else 1, :: -1 if reverse_columns else 1]

    return PageView(page, rows, height=height, width=width)


def single_channel(page: Page, *, luma: bool) -> Page:
    """Greyscale saved as RGB becomes one channel, and so does colour with ``luma``."""
    if page.channels == 1:
        return page
    if all(_channels_equal(strip) for strip in page.strips()):
        return PageView(page, lambda start, stop: page.rows(start, stop)[:, :, :1], channels=1)

    def luma_rows(start: int, stop: int) -> Pixels:
        grey: Pixels = page.rows(start, stop) @ np.array(LUMA)
        if page.dtype != "float32":
            grey = np.rint(grey)
        return grey.astype(page.dtype)[:, :, None]

    return PageView(page, luma_rows, channels=1) if luma else page


def _channels_equal(strip: Pixels) -> bool:
    first = strip[:, :, 0]
    return bool(np.array_equal(first, strip[:, :, 1]) and np.array_equal(first, strip[:, :, 2]))


def to_stored(pixels: Pixels) -> Pixels:
    """Pixels in one of the three stored types, without loss except that float64 is rounded to float32."""
    kind, size = pixels.dtype.kind, pixels.dtype.itemsize
    if kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if kind == "u" and size <= 2:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if kind == "f" or (kind == "i" and size <= 2):  # float32 holds every 16-bit integer
        with np.errstate(over="ignore"):
            stored: Pixels = pixels.astype(np.float32)
        # The largest float64 fills missing pixels and may become infinite.
        if size > 4 and (np.isinf(stored) & np.isfinite(pixels) & (np.abs(pixels) < _LARGEST_FLOAT64)).any():
            raise Unreadable("its float64 values exceed the range of float32; rescale the image")
        return stored
    raise Unreadable(
        f"{pixels.dtype} values cannot be stored without loss; save the image as 16-bit or float"
    )


def drop_alpha(pixels: Pixels) -> Pixels:
    """(h, w, c) without an alpha channel: 2 -> 1 and 4 -> 3 channels."""
    channels = pixels.shape[2]
    if channels not in (1, 2, 3, 4):
        raise Unreadable(f"it has {channels} channels but must have 1 (grey) or 3 (colour)")
    return pixels[:, :, : channels - 1] if channels in (2, 4) else pixels

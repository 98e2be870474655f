"""One image of a file, read by rows, and derived images: grey, cropped or upright."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pscl_hpc.archive.format import TILE, Pixels
from pscl_hpc.archive.ingest.errors import Unreadable

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

ORIENTATION = 274
"""Number of the orientation tag in EXIF 2.3 and TIFF 6.0."""
_MAX_WHOLE = 1 << 31
"""Bytes of a page whose rows become columns, which needs all of it in memory."""


class _Turn(NamedTuple):
    """How an orientation is undone: transpose first, then reverse rows and columns."""

    transpose: bool
    rows: bool
    columns: bool


_TURNS = {
    2: _Turn(False, False, True),
    3: _Turn(False, True, True),
    4: _Turn(False, True, False),
    5: _Turn(True, False, False),
    6: _Turn(True, False, True),
    7: _Turn(True, True, True),
    8: _Turn(True, True, False),
}


class Page(ABC):
    """One image of a file, readable by rows.

    Attributes:
        height, width, channels: channels is 1 or 3, without alpha.
        dtype: ``"uint8"``, ``"uint16"`` or ``"float32"``.
        intensity: (low, high) if the file declares that fewer bits are used, else None.
        um_per_pixel, magnification: from the tags of the file, else None.
    """

    height: int
    width: int
    channels: int
    dtype: str
    intensity: tuple[float, float] | None = None
    um_per_pixel: float | None = None
    magnification: float | None = None

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


class PageView(Page):
    """An image derived from another page; keeps its tags."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.height, self.width = page.height, page.width
        self.channels, self.dtype = page.channels, page.dtype
        self.intensity, self.um_per_pixel = page.intensity, page.um_per_pixel
        self.magnification = page.magnification


class GreyPage(PageView):
    """The luma of a colour page, or its first channel if all are equal."""

    def __init__(self, page: Page, *, equal: bool) -> None:
        super().__init__(page)
        self.channels = 1
        self._equal = equal

    def rows(self, start: int, stop: int) -> Pixels:
        pixels = self._page.rows(start, stop)
        if self._equal:
            return pixels[:, :, :1]
        luma: Pixels = pixels @ _LUMA
        if self.dtype != "float32":
            luma = np.rint(luma)
        return luma.astype(self.dtype)[:, :, None]


class RowsPage(PageView):
    """Rows ``first`` to ``last`` (exclusive) of a page."""

    def __init__(self, page: Page, first: int, last: int) -> None:
        super().__init__(page)
        self._first = first
        self.height = last - first

    def rows(self, start: int, stop: int) -> Pixels:
        return self._page.rows(self._first + start, self._first + stop)


class _UprightPage(PageView):
    def __init__(self, page: Page, turn: _Turn) -> None:
        super().__init__(page)
        self._turn = turn
        self._whole: Pixels | None = None
        if turn.transpose:
            self.height, self.width = page.width, page.height

    def rows(self, start: int, stop: int) -> Pixels:
        if self._turn.rows:
            start, stop = self.height - stop, self.height - start
        if not self._turn.transpose:
            pixels = self._page.rows(start, stop)
        else:
            if self._whole is None:
                self._whole = self._page.rows(0, self._page.height).swapaxes(0, 1)
            pixels = self._whole[start:stop]
        return pixels[:: -1 if self._turn.rows else 1, :: -1 if self._turn.columns else 1]


def upright(page: Page, orientation: object) -> Page:
    """The page as viewers show it, by its orientation tag; invalid values are ignored.

    Raises:
        Unreadable: rows become columns and the page is too large for memory.
    """
    if not isinstance(orientation, int) or orientation not in _TURNS:
        return page
    turn = _TURNS[orientation]
    size = page.height * page.width * page.channels * np.dtype(page.dtype).itemsize
    if turn.transpose and size > _MAX_WHOLE:
        raise Unreadable(
            f"its orientation tag ({int(orientation)}) requires a rotation, for which {page.width} x {page.height} "
            "pixels are too many; save it upright"
        )
    return _UprightPage(page, turn)


def single_channel(page: Page, *, luma: bool) -> Page:
    """Greyscale saved as RGB becomes one channel, and so does true colour with ``luma``."""
    if page.channels == 1:
        return page
    equal = all(_channels_equal(strip) for strip in page.strips())
    return GreyPage(page, equal=equal) if equal or luma else page


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
        return pixels.astype(np.float32)
    raise Unreadable(
        f"{pixels.dtype} values cannot be stored without loss; save the image as 16-bit or float"
    )


def drop_alpha(pixels: Pixels) -> Pixels:
    """(h, w, c) without an alpha channel: 2 -> 1 and 4 -> 3 channels."""
    channels = pixels.shape[2]
    if channels not in (1, 2, 3, 4):
        raise Unreadable(f"it has {channels} channels but must have 1 (grey) or 3 (colour)")
    return pixels[:, :, : channels - 1] if channels in (2, 4) else pixels

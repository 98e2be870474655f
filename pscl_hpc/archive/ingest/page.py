"""One image of a file, read by rows, and the same image seen in grey or cut to some of its rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.format import TILE
from pscl_hpc.archive.ingest.errors import Unreadable

Pixels = npt.NDArray[Any]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class Page(ABC):
    """One image of a file, readable by rows.

    Attributes:
        height, width, channels: channels is 1 or 3; alpha is gone.
        dtype: ``"uint8"``, ``"uint16"`` or ``"float32"``.
        intensity: (low, high) where the file says that fewer bits are used, else None.
        um_per_pixel, magnification: from the tags of the file, None when it has none.
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
        """(stop - start, width, channels) pixels in ``dtype``; Unreadable when they are damaged."""

    def strips(self) -> Iterator[Pixels]:
        """All rows, 256 at a time."""
        for start in range(0, self.height, TILE):
            yield self.rows(start, min(start + TILE, self.height))


class ArrayPage(Page):
    """A page that is in memory, (h, w, channels)."""

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
    """Another page seen differently; keeps its tags."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.height, self.width = page.height, page.width
        self.channels, self.dtype = page.channels, page.dtype
        self.intensity, self.um_per_pixel = page.intensity, page.um_per_pixel
        self.magnification = page.magnification


class GreyPage(PageView):
    """The luma (or, of equal channels, the one channel) of a colour page."""

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
    """The rows ``first`` to ``last`` (exclusive) of a page."""

    def __init__(self, page: Page, first: int, last: int) -> None:
        super().__init__(page)
        self._first = first
        self.height = last - first

    def rows(self, start: int, stop: int) -> Pixels:
        return self._page.rows(self._first + start, self._first + stop)


def single_channel(page: Page, *, luma: bool) -> Page:
    """Greyscale saved as RGB becomes one channel; true colour too when ``luma`` is asked for."""
    if page.channels == 1:
        return page
    equal = all(_channels_equal(strip) for strip in page.strips())
    return GreyPage(page, equal=equal) if equal or luma else page


def _channels_equal(strip: Pixels) -> bool:
    first = strip[:, :, 0]
    return bool(np.array_equal(first, strip[:, :, 1]) and np.array_equal(first, strip[:, :, 2]))


def to_stored(pixels: Pixels) -> Pixels:
    """Pixels in one of the three stored types, value for value (float64 is rounded to float32)."""
    kind, size = pixels.dtype.kind, pixels.dtype.itemsize
    if kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if kind == "u" and size <= 2:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if kind == "f" or (kind == "i" and size <= 2):  # float32 holds every 16-bit integer
        return pixels.astype(np.float32)
    raise Unreadable(f"{pixels.dtype} values cannot be stored without loss; save it as 16-bit or float")


def drop_alpha(pixels: Pixels) -> Pixels:
    """(h, w, c) without an alpha channel: 2 -> 1 and 4 -> 3 channels."""
    channels = pixels.shape[2]
    if channels not in (1, 2, 3, 4):
        raise Unreadable(f"it has {channels} channels; 1 (grey) or 3 (colour) can be stored")
    return pixels[:, :, : channels - 1] if channels in (2, 4) else pixels

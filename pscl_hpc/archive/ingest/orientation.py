"""Turning a page upright, as the orientation tag of its file says (274 in EXIF 2.3 and in TIFF 6.0)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.page import Page, PageView, Pixels

ORIENTATION = 274
_MAX_WHOLE = 1 << 31
"""Bytes of a page whose rows become columns: it has to be held whole."""


class _Turn(NamedTuple):
    """What undoes an orientation: first rows become columns, then the order is turned round."""

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


def upright(page: Page, orientation: object) -> Page:
    """The page as viewers show it; values that are no orientation change nothing.

    Raises:
        Unreadable: rows become columns and the page is too large to be held whole.
    """
    if not isinstance(orientation, int) or orientation not in _TURNS:
        return page
    turn = _TURNS[orientation]
    size = page.height * page.width * page.channels * np.dtype(page.dtype).itemsize
    if turn.transpose and size > _MAX_WHOLE:
        raise Unreadable(
            f"its orientation tag ({int(orientation)}) turns it on its side, for which {page.width} x "
            f"{page.height} pixels are too many; save it upright"
        )
    return _UprightPage(page, turn)


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

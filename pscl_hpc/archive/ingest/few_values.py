"""Images with so few values that they may be masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pscl_hpc.archive.format import Pixels
from pscl_hpc.archive.ingest.page import Page

_MOST = 16
"""Values of an image that may be a mask, at most; an image of one value is empty instead."""


class FewValues:
    """Counts the values of an image that is read in strips."""

    def __init__(self) -> None:
        self._values: set[float] = set()

    def __bool__(self) -> bool:
        return 1 < len(self._values) <= _MOST

    @property
    def many(self) -> bool:
        """Whether there are more already."""
        return len(self._values) > _MOST

    def watch(self, strips: Iterable[Pixels]) -> Iterator[Pixels]:
        """The strips (rows, width, channels); most images are decided by their first row."""
        for strip in strips:
            for part in (strip[:1], strip):
                if not self.many:
                    self._values.update(np.unique(part).tolist())
            yield strip


def has_few_values(page: Page) -> bool:
    """Whether a page may be a mask; of most micrographs only the first strip is read."""
    found = FewValues()
    for _ in found.watch(page.strips()):
        if found.many:
            break
    return bool(found)

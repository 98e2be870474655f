"""Which images and which windows of them are read: epoch order, random windows of one size from images of any size."""

from __future__ import annotations

from collections.abc import Collection as Some

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.format import IGNORE_INDEX, ImageRecord, Window
from pscl_hpc.archive.reader import Archive

_STRIDE = 8
"""Distance of the squares that :func:`covering_square` compares, in pixels."""


def epoch_order(count: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of ``range(count)``, (count,), determined by (seed, epoch) alone, so nothing is saved for a
    resume."""
    # Philox is specified by its paper and never changes between numpy versions. Generator.permutation promises no such
    # thing, so the shuffle is an argsort of raw random words.
    bits = np.random.Philox(np.random.SeedSequence((seed & (1 << 64) - 1, epoch)))
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)


def draw_window(
    record: ImageRecord, size: tuple[int, int], random: np.random.Generator, region: Window | None = None
) -> Window:
    """A uniformly random window of ``size`` (h, w), smaller where the image is smaller.

    With a ``region``, along each axis the window contains the region or is inside it, whichever is larger.
    """
    height, width = min(size[0], record.height), min(size[1], record.width)
    top, left, region_height, region_width = region or (0, 0, record.height, record.width)
    return (
        _draw_start(record.height, height, top, region_height, random),
        _draw_start(record.width, width, left, region_width, random),
        height,
        width,
    )


def covering_square(mask: npt.NDArray[np.uint8], classes: Some[int], side: int) -> Window:
    """The square of ``side`` pixels with the most of ``classes``; of those, with the most pixels of its rarest class.

    Squares are compared every 8 pixels and at the far edges; ties go to the topmost and then leftmost. A side longer
    than the mask (h, w) is cut to it.
    """
    height, width = min(side, mask.shape[0]), min(side, mask.shape[1])
    tops, lefts = (_starts(total, size) for total, size in zip(mask.shape, (height, width), strict=True))
    counts = []
    for index in sorted(classes):
        total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
        total[1:, 1:] = (mask == index).cumsum(0, dtype=np.int64).cumsum(1)
        lower, upper = total[tops + height], total[tops]
        counts.append(lower[:, lefts + width] - lower[:, lefts] - upper[:, lefts + width] + upper[:, lefts])
    found = np.stack(counts)
    shown = (found > 0).sum(axis=0)
    rarest = np.where(found > 0, found, np.iinfo(np.int64).max).min(axis=0)
    score = shown * (mask.size + 1) + np.where(shown > 0, rarest, 0)
    row, column = np.unravel_index(int(score.argmax()), score.shape)
    return int(tops[row]), int(lefts[column]), height, width


def restrict(mask: npt.NDArray[np.uint8], window: Window, region: Window) -> npt.NDArray[np.uint8]:
    """``mask`` of a window, not annotated outside ``region``; both windows are in pixels of the whole image."""
    rows, columns = (np.arange(window[axis], window[axis] + window[axis + 2]) for axis in (0, 1))
    outside = (rows < region[0]) | (rows >= region[0] + region[2])
    beside = (columns < region[1]) | (columns >= region[1] + region[3])
    return np.where(outside[:, None] | beside, np.uint8(IGNORE_INDEX), mask)


def read_window(
    archive: Archive,
    record: ImageRecord,
    window: Window,
    size: tuple[int, int],
    *,
    channels: int,
    standardise: bool = False,
    region: Window | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Image (channels, h, w) in 0..1 and mask (h, w) of exactly ``size``.

    A smaller window is extended by reflection at its far edges, image and mask alike. The mask is ``IGNORE_INDEX``
    everywhere for an image without one, and outside ``region`` when one is given.
    """
    image = archive.read_unit(record.index, window, channels=channels, standardise=standardise)
    if record.has_mask:
        mask = archive.read_mask(record.index, window)
    else:
        mask = np.full(window[2:], IGNORE_INDEX, np.uint8)
    if region is not None:
        mask = restrict(mask, window, region)
    missing = (0, size[0] - window[2]), (0, size[1] - window[3])
    if missing != ((0, 0), (0, 0)):
        image = np.pad(image, ((0, 0), *missing), mode="symmetric")
        mask = np.pad(mask, missing, mode="symmetric")
    return image, mask


def _draw_start(total: int, size: int, start: int, length: int, random: np.random.Generator) -> int:
    first, last = sorted((start, start + length - size))
    return int(random.integers(max(0, first), min(total - size, last) + 1))


def _starts(total: int, size: int) -> npt.NDArray[np.int64]:
    return np.unique(np.append(np.arange(0, total - size + 1, _STRIDE), total - size))

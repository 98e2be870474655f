"""Windows of one fixed size from images of any size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.format import IGNORE_INDEX, ImageRecord, Window
from pscl_hpc.archive.reader import Archive


def draw_window(record: ImageRecord, size: tuple[int, int], random: np.random.Generator) -> Window:
    """A uniformly random window of ``size`` (h, w), or less where the image is smaller."""
    height, width = min(size[0], record.height), min(size[1], record.width)
    top = int(random.integers(0, record.height - height + 1))
    left = int(random.integers(0, record.width - width + 1))
    return top, left, height, width


def read_window(
    archive: Archive, record: ImageRecord, window: Window, size: tuple[int, int], *, channels: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Image (channels, h, w) in 0..1 and mask (h, w) of exactly ``size``, mirrored at the far edges where needed.

    A mirrored mask is as true as the mirrored image. Without a mask all pixels are ``IGNORE_INDEX``.
    """
    image = archive.read_unit(record.index, window, channels=channels)
    if record.has_mask:
        mask = archive.read_mask(record.index, window)
    else:
        mask = np.full(window[2:], IGNORE_INDEX, np.uint8)
    missing = (0, size[0] - window[2]), (0, size[1] - window[3])
    if missing != ((0, 0), (0, 0)):
        image = np.pad(image, ((0, 0), *missing), mode="symmetric")
        mask = np.pad(mask, missing, mode="symmetric")
    return image, mask

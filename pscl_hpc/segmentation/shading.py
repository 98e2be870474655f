"""Correction of uneven illumination: a smooth surface is subtracted from an image before it is segmented.

The surface is the least-squares polynomial of degree 2 in row and column, which has the shape of vignetting and of
one-sided light; polynomials are a common model of retrospective shading correction (doi 10.1007/s11760-015-0847-4). It
needs no image of an empty field. Structures much smaller than the image hardly change it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive import Window
from pscl_hpc.archive.reader import STANDARD_DEVIATION
from pscl_hpc.grey import LUMA

ReadWindow = Callable[[Window], npt.NDArray[np.float32]]
"""Reads a window (y0, x0, height, width) of an image as (channels, height, width) in 0..1."""

_BAND = 256
"""Rows that are read at a time."""
_SAMPLES = 512
"""Rows, and columns, at most, of the pixels that the surface is fitted to."""
_FLAT = 1e-4
"""Standard deviation below which an image has a single level."""


def corrected(read: ReadWindow, height: int, width: int, *, standardise: bool) -> ReadWindow:
    """Reads windows of an image without its smooth background.

    Args:
        read: Reads the image, which is read once, in bands of rows.
        height: Of the image in pixels.
        width: Of the image in pixels.
        standardise: Shift and scale what is left so that its grey level is standardised, as by
            :meth:`Archive.read_unit`.
    """
    step = max(1, -(-max(height, width) // _SAMPLES))
    luma = np.array(LUMA, np.float32)  # as `Archive.read_unit`
    gram, moments, squares, count = np.zeros((6, 6)), np.zeros(()), 0.0, 0
    for top in range(0, height, _BAND):
        rows = min(_BAND, height - top)
        pixels = read((top, 0, rows, width))[:, ::step, ::step].astype(float)
        basis = np.stack(_terms(top + np.arange(0, rows, step), np.arange(0, width, step), height, width))
        # The last channel is the grey level, whose deviation is standardised.
        grey = np.tensordot(luma, pixels, 1) if len(pixels) == len(LUMA) else pixels.mean(axis=0)
        values = np.concatenate([pixels, grey[None]]).reshape(len(pixels) + 1, -1)
        flat = basis.reshape(6, -1)
        gram = gram + flat @ flat.T
        moments = moments + flat @ values.T
        squares += float((values[-1] ** 2).sum())
        count += values.shape[1]
    # The least norm where an image has too few rows or columns for all terms.
    weights = np.linalg.lstsq(gram, moments, rcond=None)[0]
    deviation = max(0.0, float(squares - weights[:, -1] @ moments[:, -1]) / count) ** 0.5
    gain = float(STANDARD_DEVIATION) / deviation if standardise and deviation > _FLAT else 1.0
    *means, level = moments[0] / gram[0, 0]
    raised = 0.5 - level * gain if standardise else 0.0

    def window(place: Window) -> npt.NDArray[np.float32]:
        y0, x0, rows, columns = place
        terms = _terms(y0 + np.arange(rows), x0 + np.arange(columns), height, width)
        surfaces = np.tensordot(weights[:, :-1].T, np.stack(terms), 1)
        even = read(place) - surfaces + np.array(means)[:, None, None]
        found: npt.NDArray[np.float32] = np.clip(even * gain + raised, 0, 1).astype(np.float32)
        return found

    return window


def _terms(
    rows: npt.NDArray[np.int_], columns: npt.NDArray[np.int_], height: int, width: int
) -> list[npt.NDArray[np.float64]]:
    """The six terms of the polynomial at each of these pixels, (rows, columns); the image spans -1 to 1."""
    y = ((2 * rows + 1) / height - 1)[:, None] + np.zeros(len(columns))
    x = ((2 * columns + 1) / width - 1)[None, :] + np.zeros((len(rows), 1))
    return [np.ones_like(x), y, x, y * y, x * x, y * x]

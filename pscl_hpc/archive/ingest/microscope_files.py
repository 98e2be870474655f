"""Images of Gatan DigitalMicrograph (.dm3, .dm4) and FEI TIA (.ser), by RosettaSciIO (the extra ``microscopes``)."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pscl_hpc.archive.format import Pixels
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.page import ArrayPage
from pscl_hpc.archive.ingest.scale_text import UM

_READERS = {".dm3": "digitalmicrograph", ".dm4": "digitalmicrograph", ".ser": "tia"}
SUFFIXES = tuple(_READERS) if find_spec("rsciio") else ()
"""Endings that can be read; none without the extra."""
_EXACT = 1 << 24
"""float32 holds integers up to here."""


def read_microscope_file(path: Path) -> list[ArrayPage]:
    """The images of a file, with micrometres per pixel; Unreadable if it has none or is damaged."""
    with decoding(f"{path.suffix.lower()} file"):
        reader: Any = import_module(f"rsciio.{_READERS[path.suffix.lower()]}")
        pages = [page for signal in reader.file_reader(str(path)) for page in _pages(signal)]
    if not pages:
        raise Unreadable("it has no image, only spectra or numbers")
    for number, page in enumerate(pages):
        page.number, page.total = number, len(pages)
    return pages


def _pages(signal: dict[str, Any]) -> list[ArrayPage]:
    data, axes = np.asarray(signal["data"]), signal["axes"]
    if data.dtype.names is not None:  # colours as fields
        data = np.stack([data[name] for name in data.dtype.names[:3]], axis=-1)
        axes = [*axes, None]
    colours = 1 if axes and axes[-1] is None else 0
    if data.ndim < 2 + colours or min(data.shape[-2 - colours :][:2]) < 2:
        return []
    rows, columns = axes[len(axes) - 2 - colours :][:2]
    stack = data.reshape(-1, *data.shape[-2 - colours :])
    pages = [ArrayPage(_exact(image)) for image in stack]
    for page in pages:
        page.um_per_pixel = _um(rows, columns)
    return pages


def _exact(image: Pixels) -> Pixels:
    """32-bit integers in a smaller type if that loses nothing."""
    if image.dtype.kind not in "iu" or image.dtype.itemsize <= 2:
        return image
    low, high = int(image.min()), int(image.max())
    if low >= 0 and high < 1 << 16:
        return image.astype(np.uint16)
    return image.astype(np.float32) if max(-low, high) < _EXACT else image


def _um(rows: dict[str, Any], columns: dict[str, Any]) -> float | None:
    sizes = [abs(float(axis["scale"])) * UM.get(str(axis.get("units", "")), 0.0) for axis in (rows, columns)]
    return sizes[0] if sizes[0] > 0 and abs(sizes[0] - sizes[1]) <= 1e-3 * sizes[0] else None

"""Images of Gatan DigitalMicrograph (.dm3, .dm4) and FEI TIA (.ser), by RosettaSciIO (the extra ``microscopes``), and of
Zeiss ZEN (.czi), by czifile (the extra ``zeiss``)."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pscl_hpc.archive.format import Pixels
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.page import ArrayPage
from pscl_hpc.archive.ingest.scale_text import UM

_READERS = {".dm3": "digitalmicrograph", ".dm4": "digitalmicrograph", ".ser": "tia"}
_CZI = ".czi"
SUFFIXES = (*(_READERS if find_spec("rsciio") else ()), *([_CZI] if find_spec("czifile") else []))
"""Endings that can be read; none without the extras."""
_MAX_WHOLE = 1 << 31
"""Bytes of a .czi file that is put together in memory."""
_EXACT = 1 << 24
"""float32 holds integers up to here."""


def read_microscope_file(path: Path) -> list[ArrayPage]:
    """The images of a file, with micrometres per pixel; Unreadable if it has none or is damaged."""
    with decoding(f"{path.suffix.lower()} file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the readers warn about parts that are not images
        if path.suffix.lower() == _CZI:
            pages = _read_czi(path)
        else:
            reader: Any = import_module(f"rsciio.{_READERS[path.suffix.lower()]}")
            pages = [page for signal in reader.file_reader(str(path)) for page in _pages(signal)]
    if not pages:
        raise Unreadable("it has no image, only spectra or numbers")
    for number, page in enumerate(pages):
        page.number, page.total = number, len(pages)
    return pages


def _read_czi(path: Path) -> list[ArrayPage]:
    """The planes of a .czi file (channels, depths, times), each put together from its tiles."""
    czi: Any = import_module("czifile")
    export = "export the images as TIFF in ZEN (Image Export)"
    with czi.CziFile(str(path)) as file:
        axes, shape = file.axes, file.shape
        if not axes.endswith("YX0"):
            raise Unreadable(f"its axes {axes} are not those of images; {export}")
        if (scenes := dict(zip(axes, shape, strict=True)).get("S", 1)) > 1:
            raise Unreadable(f"it has {scenes} scenes; {export}")
        compressions = {entry.compression for entry in file.filtered_subblock_directory}
        if unknown := compressions - set(czi.czifile.DECOMPRESS):
            raise Unreadable(f"its compression (number {min(unknown)}) is not read; {export}")
        if np.prod(shape, dtype=np.int64) * file.dtype.itemsize > _MAX_WHOLE:
            raise Unreadable(f"it is too large for memory; {export}")
        planes = file.asarray(max_workers=1).reshape(-1, *shape[-3:])
        um_per_pixel = _um_of_czi(file.metadata())
    pages = [ArrayPage(plane) for plane in planes]
    for page in pages:
        page.um_per_pixel = um_per_pixel
    return pages


def _um_of_czi(metadata: str) -> float | None:
    """Micrometres per pixel from the XML of a .czi file, which has metres; None if pixels are not square."""
    distances = ElementTree.fromstring(metadata).iter("Distance")
    sizes = {one.get("Id"): float(one.findtext("Value") or "nan") * 1e6 for one in distances}
    across, down = sizes.get("X", 0.0), sizes.get("Y", 0.0)
    return across if across > 0 and abs(across - down) <= 1e-3 * across else None


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

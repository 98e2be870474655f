"""Pictures that Pillow decodes, up to the size that the archive takes."""

from __future__ import annotations

import io

from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from pscl_hpc.archive.ingest.errors import Unreadable

MAX_DECODED = 1 << 29
"""Pixels of a PNG, JPEG or BMP, which have to be decoded whole."""
_FORMATS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"BM", BmpImageFile),
)


def open_picture(data: bytes) -> ImageFile:
    """A PNG, JPEG or BMP, told by its first bytes; its pixels are decoded on first use.

    The classes of the formats are called themselves because ``PIL.Image.open`` refuses whatever is larger than a limit
    of its own, which can only be changed for the whole process.

    Raises:
        Unreadable: it has more than :data:`MAX_DECODED` pixels.
        Exception: it is of another kind, or its header is damaged; call it within ``decoding``.
    """
    for head, kind in _FORMATS:
        if data.startswith(head):
            image = kind(io.BytesIO(data))
            check_size(*image.size)
            return image
    raise ValueError("not a PNG, JPEG or BMP image")


def check_size(width: int, height: int) -> None:
    """Unreadable where an image of so many pixels is not decoded whole."""
    if width * height > MAX_DECODED:
        raise Unreadable(f"{width} x {height} pixels are too many to decode whole; save it as a tiled TIFF")

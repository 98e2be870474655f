"""Opening image files without losing depth.

PNG is decoded by libpng (16 bits stay 16 bits, palettes become the colours they stand for), JPEG and BMP by
Pillow (8 bits is all they hold), TIFF by tifffile, page by page and band by band. A JPEG or a TIFF is turned upright as
its orientation tag says, as viewers show it. What a file is, is told by its first bytes, not by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.orientation import ORIENTATION, upright
from pscl_hpc.archive.ingest.page import ArrayPage, Page, Pixels
from pscl_hpc.archive.ingest.pillow import check_size, open_picture
from pscl_hpc.archive.ingest.tiff import open_tiff

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@contextmanager
def open_pages(path: Path) -> Iterator[list[Page]]:
    """The images of a file; they are readable until the block ends.

    Raises:
        Unreadable: the file is empty, damaged, of another kind or of a layout that cannot be stored whole.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from error
    if not head:
        raise Unreadable("the file is empty")
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        with open_tiff(path) as pages:
            yield list(pages)
    elif head == b"\x89PNG\r\n\x1a\n":
        yield [ArrayPage(_decode_png(path))]
    elif head[:3] == b"\xff\xd8\xff" or head[:2] == b"BM":
        yield [_decode_pillow(path)]
    else:
        raise Unreadable("it is not a PNG, JPEG, BMP or TIFF image")


def _decode_png(path: Path) -> Pixels:
    with decoding("PNG"):
        data = path.read_bytes()
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        check_size(width, height)
        return np.asarray(imagecodecs.png_decode(data))


def _decode_pillow(path: Path) -> Page:
    with decoding("image"), open_picture(path.read_bytes()) as image:
        exact = {"1": "L", "P": "RGB", "L": "L", "RGB": "RGB", "RGBA": "RGB"}.get(image.mode)
        if exact is None:
            raise Unreadable(f"its colour mode {image.mode} has no exact grey or RGB form")
        return upright(ArrayPage(np.asarray(image.convert(exact))), _orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises whatever a mangled header leads to; the pixels are whole all the same.
        return 1

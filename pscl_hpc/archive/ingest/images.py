"""Opening image files without loss of depth.

PNG is decoded by libpng (16 bits are kept, palettes become colours), JPEG and BMP by Pillow (they have 8 bits), TIFF by
tifffile, page by page and band by band. A JPEG or TIFF is turned upright by its orientation tag, as viewers show it.
The format is determined from the first bytes of a file, not from its name.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from pscl_hpc.archive.format import Pixels
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.foreign import NOT_READ, reason
from pscl_hpc.archive.ingest.microscope_files import SUFFIXES as MICROSCOPE_SUFFIXES
from pscl_hpc.archive.ingest.microscope_files import read_microscope_file
from pscl_hpc.archive.ingest.page import ORIENTATION, ArrayPage, Page, upright
from pscl_hpc.archive.ingest.pages import choose
from pscl_hpc.archive.ingest.scale_text import scale_beside
from pscl_hpc.archive.ingest.tiff import open_tiff
from pscl_hpc.archive.options import ALL_PAGES

_OTHER_NAMES = (".jpe", ".jfif", ".btf", ".tf2", ".tf8", ".svs")
"""Other endings of JPEG and TIFF files."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", *_OTHER_NAMES, *MICROSCOPE_SUFFIXES)
MAX_DECODED = 1 << 29
"""Pixels of a PNG, JPEG or BMP, which is decoded into memory as a whole."""
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files, in both byte orders."""
_PNG, _JPEG, _BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"
_PILLOW: dict[bytes, type[ImageFile]] = {_PNG: PngImageFile, _JPEG: JpegImageFile, _BMP: BmpImageFile}


@contextmanager
def open_pages(path: Path, page: int = ALL_PAGES) -> Iterator[list[Page]]:
    """The images of a file, readable inside the block.

    Args:
        page: number of the only page to read if the file has several; by default all but those that show another one
            again.

    Raises:
        Unreadable: the file is empty, damaged, not an image, or has a layout that cannot be stored.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from error
    if not head:
        raise Unreadable("the file is empty")
    if head.startswith(TIFF_HEADS):
        with open_tiff(path) as pages:
            yield _with_scale(choose(pages, page), path)
    elif head == _PNG:
        yield _with_scale([ArrayPage(_decode_png(path))], path)
    elif path.suffix.lower() in MICROSCOPE_SUFFIXES:
        yield _with_scale(choose(read_microscope_file(path), page), path)
    elif head.startswith((_JPEG, _BMP)):
        yield _with_scale([_decode_pillow(path)], path)
    else:
        suffix = path.suffix.lower()
        advice = reason(suffix) if suffix in NOT_READ else "save it as TIFF or PNG"
        raise Unreadable(f"it is not a PNG, JPEG, BMP or TIFF image; {advice}")


def _with_scale(pages: list[Page], path: Path) -> list[Page]:
    """The pages; those without a scale in the file take it from a text file beside it."""
    if not any(page.um_per_pixel or page.magnification for page in pages):
        um_per_pixel, magnification = scale_beside(path)
        for page in pages:
            page.um_per_pixel, page.magnification = um_per_pixel, magnification
    return pages


def open_picture(data: bytes) -> ImageFile:
    """A PNG, JPEG or BMP; its pixels are decoded on first use. Call it within ``decoding``.

    ``PIL.Image.open`` is not used because its own size limit can only be changed for the whole process.

    Raises:
        Unreadable: it has more than :data:`MAX_DECODED` pixels.
        Exception: it has another format, or its header is damaged.
    """
    for head, kind in _PILLOW.items():
        if data.startswith(head):
            image = kind(io.BytesIO(data))
            _check_size(*image.size)
            return image
    raise ValueError("not a PNG, JPEG or BMP image")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_DECODED:
        raise Unreadable(f"{width} x {height} pixels are too many for this format; save it as a tiled TIFF")


def _decode_png(path: Path) -> Pixels:
    with decoding("PNG"):
        data = path.read_bytes()
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        _check_size(width, height)
        return np.asarray(imagecodecs.png_decode(data))


def _decode_pillow(path: Path) -> Page:
    with decoding("image"), open_picture(path.read_bytes()) as image:
        exact = {"1": "L", "P": "RGB", "L": "L", "RGB": "RGB", "RGBA": "RGB"}.get(image.mode)
        if exact is None:
            raise Unreadable(f"its colour mode {image.mode} cannot be converted to grey or RGB without loss")
        return upright(ArrayPage(np.asarray(image.convert(exact))), _orientation(image))


def _orientation(image: ImageFile) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged header raises many types and does not affect the pixels
        return 1

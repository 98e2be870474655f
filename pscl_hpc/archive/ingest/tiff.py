"""TIFF pages, read by parts so that a mosaic larger than memory can be packed: tiles, strips, rows of plain strips."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile

from pscl_hpc.archive.format import TILE, Pixels
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.page import ORIENTATION, Page, drop_alpha, to_stored, upright
from pscl_hpc.archive.ingest.scale import scale_of

logging.getLogger("tifffile").addHandler(logging.NullHandler())
"""What it says about damaged files is said by :class:`Unreadable`, in a sentence."""
_REDUCED = 1
"""Bit of NewSubfileType: a reduced copy of another page (thumbnail, pyramid level)."""
_TRANSPARENCY = 4
"""Bit of NewSubfileType: a transparency mask of another page."""
_WHOLE_SLIDE = ("is_svs", "is_ndpi", "is_scn", "is_bif", "is_philips")
"""Flags of tifffile for the formats of slide scanners."""
_GREY_WHITE_ZERO, _GREY, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_SEPARATE = 2
_JPEG = (6, 7)
"""Compressions whose decoder converts YCbCr to RGB."""
_MAX_WHOLE = 1 << 31
"""Bytes of a page that can only be decoded as a whole."""


@contextmanager
def open_tiff(path: Path) -> Iterator[list[Page]]:
    """The full-size pages of a TIFF file, upright; Unreadable if it is damaged."""
    with decoding("TIFF"):
        file = tifffile.TiffFile(path)
    with file:
        with decoding("TIFF"):
            if not len(file.pages):
                raise Unreadable("damaged TIFF (it has no page)")
            um_per_pixel, magnification = scale_of(file)
            frames = _full_size(file)
            pages = [TiffPage(frame, file.filehandle) for frame in frames]
            _check_whole(file)
        if not pages:
            raise Unreadable("the TIFF has no page")
        for page, frame in zip(pages, frames, strict=True):
            page.um_per_pixel, page.magnification = um_per_pixel, magnification
            page.number, page.total = frame.index, len(pages)
        yield [upright(page, page.orientation) for page in pages]


def _full_size(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The pages that are not declared as thumbnails, levels of a pyramid or transparency masks."""
    if any(getattr(file, name) for name in _WHOLE_SLIDE):
        # These formats do not declare their levels; the first series is the slide.
        return [page.aspage() for page in file.series[0].levels[0].pages if page is not None]
    pages = [page.aspage() for page in file.pages]
    return [page for page in pages if not page.subfiletype & (_REDUCED | _TRANSPARENCY)]


def _check_whole(file: tifffile.TiffFile) -> None:
    """Unreadable when pages are missing: tifffile silently stops at damage in the list of pages."""
    place = file.pages.next_page_offset
    assert place is not None
    file.filehandle.seek(place)
    if any(file.filehandle.read(file.tiff.offsetsize)):
        raise Unreadable(f"the file ends inside its list of pages, after {len(file.pages)}; save it again")
    # ImageJ lists only the first page of a stack above 4 GB.
    if (file.is_imagej or file.is_shaped) and file.series[0].is_truncated:
        shape = " x ".join(map(str, file.series[0].shape))
        raise Unreadable(
            f"it is a stack of {shape} but lists {len(file.pages)} page; save each page as a file"
        )


def _is_plain(page: tifffile.TiffPage) -> bool:
    """Whether the strips are the pixels as they are, so that rows can be read alone."""
    return (
        not page.is_tiled
        and page.compression == 1
        and page.predictor == 1
        and page.fillorder == 1
        and page.dtype is not None
        and page.bitspersample == 8 * page.dtype.itemsize
        and page.photometric != _YCBCR
    )


def _parts_of_strip(page: tifffile.TiffPage) -> int:
    """Rows that are read at once: a divisor of the rows of a strip, unless there is only one strip."""
    rows = int(page.chunks[0])
    return min(rows, TILE) if rows >= page.imagelength or rows % TILE == 0 else rows


class TiffPage(Page):
    """One page of a TIFF file with its rows as stored, not turned by ``orientation``."""

    def __init__(self, page: tifffile.TiffPage, handle: tifffile.FileHandle) -> None:
        self._tiff = page
        self._handle = handle
        self._band: tuple[int, Pixels] | None = None
        if page.photometric not in (_GREY_WHITE_ZERO, _GREY, _RGB, _PALETTE, _YCBCR):
            raise Unreadable(
                f"its colour model {page.photometric} cannot be converted to grey or RGB without loss"
            )
        if page.photometric == _YCBCR and page.compression not in _JPEG:
            raise Unreadable("its YCbCr colours are not compressed as JPEG; save it as RGB")
        if page.imagedepth != 1 or page.dtype is None or not page.dataoffsets:
            raise Unreadable(f"a TIFF page of shape {page.shape} and type {page.dtype} is not an image")
        self.height, self.width = page.imagelength, page.imagewidth
        self.orientation: object = page.tags.valueof(ORIENTATION)
        self._whole = page.planarconfig == _SEPARATE and page.samplesperpixel > 1
        if self._whole and page.nbytes > _MAX_WHOLE:
            raise Unreadable(
                "its separate colour planes are too large for memory; save it with interleaved colour"
            )
        self._plain = not self._whole and _is_plain(page)
        self._band_rows = self.height if self._whole else page.chunks[0]
        if self._plain:
            self._band_rows = _parts_of_strip(page)
        sample = self._convert(np.zeros((1, 1, page.samplesperpixel), page.dtype))
        self.channels, self.dtype = sample.shape[2], sample.dtype.name
        bits = page.bitspersample
        if self.dtype != "float32" and page.photometric != _PALETTE and 1 < bits < 8 * sample.itemsize:
            self.intensity = (0.0, float((1 << bits) - 1))

    def rows(self, start: int, stop: int) -> Pixels:
        parts = []
        while start < stop:
            number, offset = divmod(start, self._band_rows)
            band = self._read_band(number)
            part = band[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read_band(self, number: int) -> Pixels:
        """One row of tiles, or one strip; the last one is cached."""
        if self._band is None or self._band[0] != number:
            with decoding("TIFF"):
                self._band = None  # its memory is free before the next one is read
                self._band = (number, self._convert(self._decode(number)))
        return self._band[1]

    def _decode(self, number: int) -> Pixels:
        if self._whole:
            return np.moveaxis(self._tiff.asarray(), 0, 2)
        return self._read_plain(number) if self._plain else self._decode_band(number)

    def _read_plain(self, number: int) -> Pixels:
        """Rows of an uncompressed strip, without reading the rest of it."""
        page = self._tiff
        top = number * self._band_rows
        rows = min(self._band_rows, self.height - top)
        strip, above = divmod(top, page.chunks[0])
        assert page.dtype is not None
        row_bytes = self.width * page.samplesperpixel * page.dtype.itemsize
        if page.databytecounts[strip] < (above + rows) * row_bytes:
            raise ValueError(f"segment {strip} is too short")
        self._handle.seek(page.dataoffsets[strip] + above * row_bytes)
        data = self._handle.read(rows * row_bytes)
        if len(data) != rows * row_bytes:
            raise ValueError(f"the file ends inside segment {strip}")
        stored = page.dtype.newbyteorder(page.parent.byteorder)
        return np.frombuffer(data, stored).reshape(rows, self.width, page.samplesperpixel).astype(page.dtype)

    def _decode_band(self, number: int) -> Pixels:
        page = self._tiff
        top = number * self._band_rows
        rows = min(self._band_rows, self.height - top)
        across = page.chunked[1]
        band = None
        for index in range(number * across, (number + 1) * across):
            size = page.databytecounts[index]
            if not size:
                raise ValueError(f"segment {index} is empty")
            self._handle.seek(page.dataoffsets[index])
            data = self._handle.read(size)
            if len(data) != size:
                raise ValueError(f"the file ends inside segment {index}")
            segment, (_, _, y, x, _), shape = page.decode(data, index, jpegtables=page.jpegtables)
            del data
            if segment is None:
                raise ValueError(f"segment {index} is empty")
            height, width = shape[1:3]
            if segment.shape[1] < min(height, rows) or y != top:
                raise ValueError(f"segment {index} is too short")
            if across == 1 and segment.shape[2] == self.width:
                return segment[0, :rows]
            if band is None:
                band = np.zeros((rows, self.width, page.samplesperpixel), page.dtype)
            band[:, x : x + width] = segment[0, :rows, : self.width - x]
        assert band is not None
        return band

    def _convert(self, raw: Pixels) -> Pixels:
        """Pixels in a stored type, without alpha, with palette colours looked up and black as zero."""
        page = self._tiff
        if page.photometric == _PALETTE:
            colours = np.asarray(page.colormap)
            if not (colours & 255).any() or (colours % 257 == 0).all():
                colours = (colours >> 8).astype(np.uint8)
            return colours.T[raw[:, :, 0]]
        if page.photometric == _GREY_WHITE_ZERO:
            if raw.dtype.kind == "b":
                raw = ~raw
            elif raw.dtype.kind == "u":
                raw = ((1 << page.bitspersample) - 1 - raw.astype(np.int64)).astype(raw.dtype)
            elif (
                raw.dtype.kind in "if"
            ):  # without a defined white; the intensity range makes the sign irrelevant
                raw = np.float32(0) - to_stored(raw)
        return drop_alpha(to_stored(raw))

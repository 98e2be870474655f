"""Decoding mask files: values as stored, colours, palettes and transparency."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL.ImageFile import ImageFile

from pscl_hpc.archive.format import Pixels, mask_values
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.images import TIFF_HEADS, open_picture
from pscl_hpc.archive.ingest.mask_values import TRANSPARENT, Key

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
WANTED = "a mask is an image of class indices (0, 1, 2, ...; 255 = not annotated)"
_WHITE_IS_ZERO, _PALETTE = 0, 3
_SEPARATE = 2
_REDUCED = 1
"""Bit of NewSubfileType: a reduced copy of another page."""
_CLEAR = -1
"""Colour code of a transparent pixel."""


@dataclass(frozen=True)
class MaskPage:
    """One page of a mask file."""

    name: str
    pixels: Pixels
    """(h, w) values or palette indices, or (h, w, 3) colours."""
    alpha: Pixels | None = None
    """(h, w)"""
    palette: npt.NDArray[np.uint8] | None = None
    """(n, 3) colours."""

    def values(self) -> Pixels:
        """(h, w) values; Unreadable if only colours or transparency tell the classes."""
        mask = self.pixels
        if self.coloured:
            raise Unreadable(f"the mask {self.name} is colour-coded; {WANTED}")
        if mask.ndim == 3:
            mask = mask[:, :, 0]
        if self.alpha is not None:
            self._check_alpha(mask)
        if mask.dtype.kind == "f":
            mask = _whole(mask)
        return mask.astype(np.uint8) if mask.dtype == bool else mask

    @property
    def coloured(self) -> bool:
        """Whether the pixels are colours other than grey levels."""
        return self.pixels.ndim == 3 and bool((self.pixels != self.pixels[:, :, :1]).any())

    @property
    def drawn_in_alpha(self) -> bool:
        """Whether one colour is transparent in some places and not in others, so that alpha tells the classes."""
        if self.alpha is None:
            return False
        clear = self.alpha == 0
        codes = self._opaque_codes()
        return bool(np.intersect1d(codes[clear], codes[~clear]).size)

    def codes(self) -> npt.NDArray[np.int32]:
        """(h, w) colours as 0xrrggbb, -1 where transparent; Unreadable if the colours are not of 8 bits."""
        codes = self._opaque_codes()
        if self.alpha is None:
            return codes
        partly = (self.alpha != 0) & (self.alpha != np.iinfo(self.alpha.dtype).max)
        if partly.any():
            raise Unreadable(
                f"the mask {self.name} has {int(partly.sum())} half-transparent pixels, whose class is not clear; draw "
                "with a hard brush or pencil, or save it without transparency"
            )
        return np.where(self.alpha == 0, np.int32(_CLEAR), codes)

    def colours(self) -> dict[str, int]:
        """Colours and :data:`TRANSPARENT` -> pixels, sorted by colour."""
        found, counts = np.unique(self.codes(), return_counts=True)
        return {colour_name(int(code)): int(count) for code, count in zip(found, counts, strict=True)}

    def _opaque_codes(self) -> npt.NDArray[np.int32]:
        pixels = self.pixels
        if self.palette is not None:
            pixels = self.palette[np.minimum(pixels, len(self.palette) - 1)]
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * np.uint8(255)
        if pixels.dtype == np.uint16 and not (pixels % 257).any():
            pixels = (pixels // 257).astype(np.uint8)
        if pixels.dtype != np.uint8:
            raise Unreadable(
                f"the mask {self.name} has {pixels.dtype} colours; save it with 8 bits per colour"
            )
        channels = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
        shifted: npt.NDArray[np.int32] = channels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        return shifted

    def _check_alpha(self, grey: Pixels) -> None:
        clear = self.alpha == 0
        if np.intersect1d(grey[clear], grey[~clear]).size:
            raise Unreadable(
                f"the mask {self.name} is drawn in its transparency (alpha), which is not read; give the classes of the "
                f'colours with --mask-values "{TRANSPARENT}=CLASS,#rrggbb=CLASS", or put it on a background of another '
                f"colour and save it without alpha. {WANTED.capitalize()}"
            )


def colour_name(code: int) -> str:
    """``#rrggbb`` or :data:`TRANSPARENT` for a code of :meth:`MaskPage.codes`."""
    return TRANSPARENT if code == _CLEAR else f"#{code:06x}"


def colour_code(key: Key) -> int:
    """The inverse of :func:`colour_name`."""
    return _CLEAR if key == TRANSPARENT else int(str(key).removeprefix("#"), 16)


def read_pages(path: Path) -> list[MaskPage]:
    """The pages of a mask file; its format is determined from its first bytes. Unreadable if it is damaged or lossy."""
    with decoding(f"mask {path.name}"):
        data = path.read_bytes()
        if data.startswith(TIFF_HEADS):
            return _read_tiff(data, path.name)
        if path.suffix.lower() not in MASK_SUFFIXES:
            raise Unreadable(
                f"the mask {path.name} is not a PNG, BMP or TIFF, so its values are not exact; export it as PNG from the "
                "program that made it"
            )
        # Pillow returns the indices of a palette image; libpng would convert them to colours.
        with open_picture(data) as image:
            if image.format == "JPEG":
                raise Unreadable(
                    f"the mask {path.name} is a JPEG, so its values are not exact; export it as PNG from the program that "
                    "made it"
                )
            return [_from_picture(image, path.name)]


def has_colours(path: Path) -> bool:
    """Whether the header of a mask file declares colours or transparency, so that its pixels must be looked at."""
    with decoding(f"mask {path.name}"):
        with path.open("rb") as file:
            head = file.read(26)
        if head.startswith(TIFF_HEADS):
            with tifffile.TiffFile(path) as tiff:
                return tiff.pages.first.samplesperpixel > 1
        if head.startswith(b"\x89PNG"):
            return head[25] in (2, 4, 6)
        return head.startswith(b"BM")


def used_palette(path: Path) -> dict[int, bytes]:
    """Index -> RGB of the palette entries that a mask uses; empty without a palette."""
    with decoding(f"mask {path.name}"), path.open("rb") as file:
        head = file.read(26)
        if head.startswith(b"\x89PNG") and head[25] != _PALETTE:
            return {}
    page = read_pages(path)[0]
    if page.palette is None:
        return {}
    colours = page.palette
    return {index: colours[index].tobytes() for index in mask_values(page.pixels) if index < len(colours)}


def _from_picture(image: ImageFile, name: str) -> MaskPage:
    if image.mode in ("P", "PA"):
        entries = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return MaskPage(name, np.asarray(image), palette=entries if len(entries) else None)
    return _with_channels(np.asarray(image), name)


def _with_channels(pixels: Pixels, name: str) -> MaskPage:
    if pixels.ndim == 2:
        return MaskPage(name, pixels)
    channels = pixels.shape[2]
    if channels not in (1, 2, 3, 4):
        raise Unreadable(f"the mask {name} has {channels} channels; {WANTED}")
    alpha = pixels[:, :, -1] if channels in (2, 4) else None
    return MaskPage(name, pixels[:, :, :3] if channels > 2 else pixels[:, :, 0], alpha)


def _read_tiff(data: bytes, name: str) -> list[MaskPage]:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [page.aspage() for page in file.pages]
        return [_from_tiff(page, name) for page in pages if not page.subfiletype & _REDUCED]


def _from_tiff(page: tifffile.TiffPage, name: str) -> MaskPage:
    mask: Pixels = np.asarray(page.asarray())
    if page.photometric == _PALETTE and page.colormap is not None:
        return MaskPage(name, mask, palette=(np.asarray(page.colormap).T >> 8).astype(np.uint8))
    if page.photometric == _WHITE_IS_ZERO:
        # As viewers show it: in a black-and-white mask, white is the class. But tifffile, and with it scikit-image, stores
        # the truth values of an array as they are and declares white as zero.
        if mask.dtype != bool:
            raise Unreadable(
                f"the mask {name} is stored with white as zero, so it is not clear whether its values are inverted; save "
                "it with black as zero"
            )
        mask = mask if str(page.software).startswith("tifffile") else ~mask
    if mask.ndim == 3 and page.planarconfig == _SEPARATE and page.samplesperpixel > 1:
        mask = np.moveaxis(mask, 0, 2)
    return _with_channels(mask, name)


def _whole(mask: Pixels) -> Pixels:
    """Floating-point values as integers if all are whole numbers, as ImageJ saves 32-bit masks."""
    if np.isfinite(mask).all() and (mask == np.rint(mask)).all() and np.abs(mask).max(initial=0) < 1 << 31:
        return mask.astype(np.int64)
    return mask


def translated(codes: Pixels, classes: Mapping[int, int], other: int | None) -> tuple[Pixels, list[int]]:
    """(h, w) class indices of codes, and the codes without a class; ``other`` is the class of all those."""
    found, inverse = np.unique(codes, return_inverse=True)
    missing = [int(code) for code in found if int(code) not in classes and other is None]
    table = np.array([classes.get(int(code), other or 0) for code in found], np.uint8)
    return table[inverse].reshape(codes.shape), missing

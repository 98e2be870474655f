"""A contact sheet: one picture with samples of every collection and their classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pscl_hpc.archive.format import IGNORE_INDEX, Collection, ImageRecord, Window
from pscl_hpc.archive.reader import Archive

_SIDE, _GAP, _TITLE, _LABEL = 176, 10, 46, 16
_BACKGROUND, _INK, _FAINT = (250, 250, 248), (24, 24, 28), (110, 110, 116)
_LARGEST_READ = 1024
"""Pixels along a side; only the middle of a larger image is shown."""
_OVERLAY = 0.45


def contact_sheet(archive: Archive, path: Path, *, columns: int = 8) -> None:
    """Write a PNG with up to ``columns`` images of each collection, spread evenly over it."""
    rows = []
    for name, collection in archive.collections.items():
        if records := archive.select(datasets=[name]):
            picked = np.unique(np.linspace(0, len(records) - 1, columns).round().astype(int))
            pictures = [(records[index], _picture(archive, records[index], collection)) for index in picked]
            rows.append((collection, records, pictures, max(picture.height for _, picture in pictures)))
    height = sum(_TITLE + tallest + _LABEL + _GAP for *_, tallest in rows)
    sheet = Image.new("RGB", (_GAP + columns * (_SIDE + _GAP), _GAP + height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for collection, records, pictures, tallest in rows:
        _title(draw, top, collection, records)
        for column, (record, picture) in enumerate(pictures):
            left = _GAP + column * (_SIDE + _GAP)
            sheet.paste(picture, (left, top + _TITLE))
            label = f"{record.split} {record.id.partition('/')[2]}".strip()
            draw.text((left, top + _TITLE + tallest + 2), _shorten(label), _FAINT, _font(11))
        top += _TITLE + tallest + _LABEL + _GAP
    sheet.save(path)


def class_colours(collection: Collection) -> npt.NDArray[np.uint8]:
    """(classes, 3) RGB colours with evenly spaced hues; black for the background, which is not tinted."""
    count = len(collection.classes)
    foreground = [index for index in range(count) if index != collection.background]
    colours = np.zeros((count, 3), np.uint8)
    for place, index in enumerate(foreground):
        hue = 0.02 + place / max(1, len(foreground))
        colours[index] = np.round(255 * np.array(colorsys.hsv_to_rgb(hue % 1, 0.85, 0.95)))
    return colours


def _title(
    draw: ImageDraw.ImageDraw, top: int, collection: Collection, records: Sequence[ImageRecord]
) -> None:
    annotated = sum(record.has_mask for record in records)
    draw.text((_GAP, top), collection.name, _INK, _font(17))
    left = _GAP + draw.textlength(collection.name, _font(17)) + 12
    kinds = sorted({f"{record.dtype} {'colour' if record.channels == 3 else 'grey'}" for record in records})
    draw.text(
        (left, top + 4),
        f"{len(records)} images, {annotated} annotated, {', '.join(kinds)}",
        _FAINT,
        _font(13),
    )
    left = float(_GAP)
    for index, (name, colour) in enumerate(zip(collection.classes, class_colours(collection), strict=True)):
        fill = _FAINT if index == collection.background else tuple(int(value) for value in colour)
        draw.rectangle((left, top + 27, left + 10, top + 37), fill)
        draw.text((left + 14, top + 24), name, _INK, _font(13))
        left += 14 + draw.textlength(name, _font(13)) + 16


def _picture(archive: Archive, record: ImageRecord, collection: Collection) -> Image.Image:
    """An image scaled to at most ``_SIDE`` pixels a side; the right half of an annotated one is tinted by class."""
    height, width = min(record.height, _LARGEST_READ), min(record.width, _LARGEST_READ)
    window: Window = ((record.height - height) // 2, (record.width - width) // 2, height, width)
    pixels = archive.read_unit(record.index, window, channels=3).transpose(1, 2, 0) * 255
    if record.has_mask:
        mask = archive.read_mask(record.index, window)
        tinted = (mask != IGNORE_INDEX) & (mask != collection.background)
        tinted[:, : width // 2] = False
        colours = class_colours(collection)[np.where(tinted, mask, 0)]
        pixels = np.where(tinted[:, :, None], (1 - _OVERLAY) * pixels + _OVERLAY * colours, pixels)
    image = Image.fromarray(np.rint(pixels).astype(np.uint8))
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    if max(image.size) < _SIDE:
        scale = _SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    return image


def _shorten(text: str, limit: int = 30) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

"""The picture of a suggestion: images, their textures in colour, and what the suggested images cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pscl_hpc.archive import Archive
from pscl_hpc.files import replacing, writing
from pscl_hpc.segmentation.palette import class_colours
from pscl_hpc.suggestion.coverage import nearest_distances
from pscl_hpc.suggestion.patches import STEP, ImagePatches, Vectors, windows_of
from pscl_hpc.suggestion.suggest import Suggestion
from pscl_hpc.suggestion.textures import labels_of

_SIDE, _GAP, _COLUMNS, _MOST = 200, 14, 6, 24
_LINE, _LABEL, _FRAME = 22, 34, 4
_BACKGROUND, _INK, _FAINT, _MARK = (250, 250, 248), (24, 24, 28), (110, 110, 116), (0, 90, 200)
_TINT, _DARK = 0.55, 0.3
"""Opacity of the texture's colour, and brightness of patches that the suggested images do not cover."""
_BAR = 60

Pixels = npt.NDArray[np.uint8]


def draw(archive: Archive, suggestion: Suggestion, path: Path) -> None:
    """Write a PNG. Suggested images come first, then the others by what is covered of them.

    Raises:
        JobError: the file cannot be written.
    """
    colours = class_colours(len(suggestion.textures) + 1)[1:]
    places = _shown(suggestion)
    near = np.concatenate([suggestion.images[place].vectors for place in suggestion.chosen])
    tiles = [_tile(archive, suggestion, place, colours, near) for place in places]
    rows = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    text = [*suggestion.lines(), *_wrapped(suggestion.warnings())]
    if len(places) < len(suggestion.images):
        text.append(f"shown: the {len(places)} most and least covered of {len(suggestion.images)} images")
    text.append("below each image: its textures in colour; dark where no suggested image has a similar patch")
    top = 2 * _GAP + len(text) * _LINE + _BAR + _LINE
    heights = [max(tile.height for tile in row) for row in rows]
    width = _GAP + _COLUMNS * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, top + sum(height + _GAP for height in heights)), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(text):
        pen.text((_GAP, _GAP + number * _LINE), line, _INK if number + 1 < len(text) else _FAINT, _font(15))
    _draw_shares(pen, suggestion, colours, _GAP + len(text) * _LINE, width)
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (_SIDE + _GAP), top))
        top += height + _GAP
    with writing(path), replacing(path) as temporary:
        sheet.save(temporary, "PNG")


def _shown(suggestion: Suggestion) -> list[int]:
    """The chosen images, then others from the most to the least covered; of many, the ends of that list."""
    covered = suggestion.covered
    others = [int(place) for place in np.argsort(-covered, kind="stable") if place not in suggestion.chosen]
    room = max(2, _MOST - len(suggestion.chosen))
    if len(others) > room:
        others = others[: room - room // 2] + others[-(room // 2) :]
    return [*suggestion.chosen, *others]


def _tile(
    archive: Archive, suggestion: Suggestion, place: int, colours: Pixels, near: Vectors
) -> Image.Image:
    """An image above its textures, with its name and how much of it is covered."""
    image = suggestion.images[place]
    grey = _thumbnail(archive, image)
    covered = nearest_distances(image.vectors, near) <= suggestion.nearness.radius
    textures = _texture_map(image, labels_of(image, suggestion.textures), covered, colours, grey)
    tile = Image.new("RGB", (_SIDE, 2 * grey.height + _LABEL + 2), _BACKGROUND)
    tile.paste(grey, (0, _LABEL))
    tile.paste(textures, (0, _LABEL + grey.height + 2))
    pen = ImageDraw.Draw(tile)
    chosen = place in suggestion.chosen
    if chosen:
        name = f"{suggestion.chosen.index(place) + 1}. {suggestion.id(place)}"
        box = (0, _LABEL, grey.width - 1, tile.height - 1)
        pen.rectangle(box, outline=_MARK, width=_FRAME)
        said = f"suggested; alone {suggestion.alone(place):.0%} of textures"
    else:
        name = suggestion.id(place)
        said = f"{suggestion.covered[place]:.0%} covered; alone {suggestion.alone(place):.0%} of textures"
    pen.text((0, 0), _fit(pen, name, 13), _MARK if chosen else _INK, _font(13))
    pen.text((0, 16), said, _MARK if chosen else _FAINT, _font(12))
    return tile


def _thumbnail(archive: Archive, image: ImagePatches) -> Image.Image:
    """The windows that were read, scaled to the side of a tile."""
    record = image.record
    scale = _SIDE / max(record.height, record.width)
    size = max(1, round(record.width * scale)), max(1, round(record.height * scale))
    canvas = Image.new("RGB", size, (255, 255, 255))
    for window in windows_of(record):
        top, left, height, width = window
        pixels = archive.read_unit(record.index, window, channels=3).transpose(1, 2, 0)
        box = [round(side * scale) for side in (left, top, left + width, top + height)]
        part = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
        part = part.resize((max(1, box[2] - box[0]), max(1, box[3] - box[1])), Image.Resampling.BOX)
        canvas.paste(part, (box[0], box[1]))
    return canvas


def _texture_map(
    image: ImagePatches,
    labels: npt.NDArray[np.int64],
    covered: npt.NDArray[np.bool_],
    colours: Pixels,
    grey: Image.Image,
) -> Image.Image:
    """The thumbnail with each patch in the colour of its texture, dark where it is not covered."""
    rows, columns = image.places.T
    tint = np.full((*image.grid, 3), 255, np.uint8)
    light = np.ones(image.grid, np.float32)
    tint[rows, columns] = colours[labels]
    light[rows, columns] = np.where(covered, 1, _DARK)
    scale = _SIDE / max(image.record.height, image.record.width)
    rows_seen, columns_seen = (side / (STEP * scale) for side in (grey.height, grey.width))
    box = (0, 0, min(columns_seen, image.grid[1]), min(rows_seen, image.grid[0]))
    shown = [
        np.asarray(Image.fromarray(values).resize(grey.size, Image.Resampling.NEAREST, box))
        for values in (tint, light)
    ]
    mixed = (1 - _TINT) * np.asarray(grey, np.float32) + _TINT * shown[0].astype(np.float32)
    return Image.fromarray(np.rint(mixed * shown[1][..., None]).astype(np.uint8))


def _draw_shares(
    pen: ImageDraw.ImageDraw, suggestion: Suggestion, colours: Pixels, top: int, width: int
) -> None:
    """Two bars: the textures of all images, and those of the suggested images."""
    left, right = _GAP + 150, width - _GAP
    means = suggestion.shares.mean(axis=0), suggestion.shares[list(suggestion.chosen)].mean(axis=0)
    for number, (name, share) in enumerate(zip(("textures, all", "textures, suggested"), means, strict=True)):
        upper = top + 6 + number * 30
        pen.text((_GAP, upper + 2), name, _FAINT, _font(13))
        edges = left + np.round(np.concatenate(([0.0], share.cumsum())) * (right - left)).astype(int)
        for colour, start, stop in zip(colours, edges, edges[1:], strict=False):
            if stop > start:
                fill = tuple(int(value) for value in colour)
                pen.rectangle((int(start), upper, int(stop) - 1, upper + 20), fill)


def _wrapped(lines: list[str], most: int = 150) -> list[str]:
    found: list[str] = []
    for line in lines:
        words = f"warning: {line}".split()
        row = words.pop(0)
        for word in words:
            if len(row) + len(word) >= most:
                found.append(row)
                row = "   " + word
            else:
                row += f" {word}"
        found.append(row)
    return found


def _fit(pen: ImageDraw.ImageDraw, text: str, size: int) -> str:
    while len(text) > 1 and pen.textlength(text, _font(size)) > _SIDE:
        text = text[:-2] + "…"
    return text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

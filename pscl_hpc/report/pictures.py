"""Pictures for the page: arrays as PNG data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pscl_hpc.archive import IGNORE_INDEX

Pixels = npt.NDArray[np.uint8]

CORRECT, MISSED, EXTRA, CONFUSED, UNSCORED = range(5)
"""Values of an error map."""
# Distinguishable with any common colour vision.
ERROR_COLOURS: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (0, 114, 178),
    (213, 94, 0),
    (240, 228, 66),
    (255, 255, 255),
)
_GREY_LEVELS = 32


def grey(unit: npt.NDArray[Any]) -> Pixels:
    """(channels, h, w) in 0..1 to (h, w) or (h, w, 3) uint8."""
    pixels: Pixels = np.clip(np.asarray(unit, np.float32) * 255 + 0.5, 0, 255).astype(np.uint8)
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))


def image_uri(pixels: Pixels, side: int) -> str:
    """(h, w) or (h, w, 3), averaged down until no side is longer than ``side``."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return _uri(picture.resize(_fit(picture.size, side), Image.Resampling.BOX))


def photo_uri(pixels: Pixels, side: int) -> str:
    """As :func:`image_uri`, as JPEG: a tenth of the size for pictures of grey levels and colours."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    picture.resize(_fit(picture.size, side), Image.Resampling.BOX).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def labels_uri(labels: Pixels, colours: npt.NDArray[np.uint8], side: int) -> str:
    """(h, w) class indices in their colours; 255 and indices without a colour are transparent."""
    known = np.where(labels < len(colours), labels, IGNORE_INDEX).astype(np.uint8)
    picture = _indexed(known, colours)
    picture = picture.resize(_fit(picture.size, side), Image.Resampling.NEAREST)
    return _uri(picture, transparency=IGNORE_INDEX)


def error_map(prediction: Pixels, truth: Pixels, background: int) -> Pixels:
    """Right, missed, extra, wrong class or not scored, for each pixel.

    Args:
        prediction: (h, w) class indices.
        truth: (h, w) class indices, 255 where nothing is scored.
        background: class index of the background.
    """
    errors = np.full(truth.shape, CONFUSED, np.uint8)
    errors[prediction == background] = MISSED
    errors[truth == background] = EXTRA
    errors[prediction == truth] = CORRECT
    errors[truth == IGNORE_INDEX] = UNSCORED
    return errors


def errors_uri(errors: Pixels, image: Pixels, side: int) -> str:
    """An error map (h, w) over the faded grey micrograph (h, w) or (h, w, 3); right pixels show the micrograph."""
    size = _fit((errors.shape[1], errors.shape[0]), side)
    ground = Image.fromarray(image).convert("L").resize(size, Image.Resampling.BOX)
    kinds = np.asarray(Image.fromarray(errors).resize(size, Image.Resampling.NEAREST))
    # A palette of grey levels and error colours is a third of the size of RGB.
    levels = np.linspace(128, 243, _GREY_LEVELS).round().astype(np.uint8)
    palette = np.concatenate([np.array(ERROR_COLOURS, np.uint8), np.repeat(levels[:, None], 3, axis=1)])
    faded = len(ERROR_COLOURS) + np.asarray(ground, np.uint16) * _GREY_LEVELS // 256
    return _uri(_indexed(np.where(kinds == CORRECT, faded, kinds).astype(np.uint8), palette))


def _indexed(indices: Pixels, palette: Pixels) -> Image.Image:
    picture = Image.fromarray(indices)
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    picture.putpalette(table.ravel().tolist())
    return picture


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _uri(picture: Image.Image, transparency: int | None = None) -> str:
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    picture.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

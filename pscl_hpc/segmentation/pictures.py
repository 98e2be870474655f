"""Predictions as picture files: class-index PNGs and colour overlays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.images import open_picture
from pscl_hpc.runs import replace_file
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.palette import class_colours

_TINT = 0.4
"""Share of the class colour inside a region; its outline has the full colour."""
_BAND = 1024


def overlay(
    image: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], classes: ClassList
) -> npt.NDArray[np.uint8]:
    """The micrograph with its foreground tinted by class.

    Args:
        image: (channels, h, w) in 0..1, 1 or 3 channels.
        labels: (h, w) class indices; the background and indices outside the class list (255) stay untinted.

    Returns:
        (h, w, 3) RGB.
    """
    shown = np.broadcast_to(np.moveaxis(image, 0, -1), (*labels.shape, 3)) * np.float32(255)
    colours = np.zeros((256, 3), np.float32)
    colours[: classes.count] = class_colours(classes.count, classes.background)
    strength = np.zeros(256, np.float32)
    strength[list(classes.foreground)] = 1
    tint = strength[labels] * np.where(_outline(labels), 1, np.float32(_TINT))
    mixed = shown + tint[..., None] * (colours[labels] - shown)
    picture: npt.NDArray[np.uint8] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
    return picture


def archive_overlay(
    archive: Archive, index: int, labels: npt.NDArray[np.uint8], classes: ClassList
) -> npt.NDArray[np.uint8]:
    """The overlay of an image of an archive, made in bands of rows: only the result is held whole."""
    record = archive.records[index]
    picture = np.empty((record.height, record.width, 3), np.uint8)
    for start in range(0, record.height, _BAND):
        stop = min(start + _BAND, record.height)
        # One row more on either side: an outline looks at its neighbours.
        top, bottom = max(0, start - 1), min(record.height, stop + 1)
        image = archive.read_unit(index, (top, 0, bottom - top, record.width), channels=3)
        band = overlay(image, labels[top:bottom], classes)
        picture[start:stop] = band[start - top : stop - top]
    return picture


def png_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An 8-bit PNG of (h, w) or (h, w, 3); the same pixels always give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_file(path: Path, data: bytes) -> None:
    """Write, or replace, a file at once."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    replace_file(path, write)


def read_labels(path: Path) -> npt.NDArray[np.uint8]:
    """A class-index PNG as (h, w), as large as images of an archive may be.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged or no picture.
    """
    data = path.read_bytes()
    try:
        with decoding("picture"), open_picture(data) as picture:
            return np.array(picture, np.uint8)
    except Unreadable as error:
        raise ValueError(f"{path}: {error}") from error


def picture_name(image_id: str) -> str:
    """The stem of an image's files: its id with ``/`` as ``__``, and nothing that leaves the folder."""
    return image_id.replace("/", "__").replace("\\", "__").replace("\0", "_").lstrip(".") or "_"


def _outline(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Pixels whose right or lower neighbour, or left or upper one, has another class."""
    edge = np.zeros(labels.shape, np.bool_)
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge

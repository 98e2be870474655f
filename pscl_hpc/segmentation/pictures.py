"""Predictions as image files: class-index PNGs and colour overlays."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.ingest.errors import Unreadable, decoding
from pscl_hpc.archive.ingest.images import open_picture
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.palette import class_colours

_TINT = 0.4
"""Opacity of the class colour inside a region; the outline is opaque."""
_BAND = 1024
"""Rows of an overlay that are computed at once."""
_LONGEST = 150
"""Bytes of a file stem. A page number, ``.overlay.png`` and the ending of a temporary file must fit into 255 as
well."""


def overlay(
    image: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], classes: ClassList
) -> npt.NDArray[np.uint8]:
    """The micrograph with the foreground classes in colour.

    Args:
        image: (channels, h, w) in 0..1, 1 or 3 channels.
        labels: (h, w) class indices; the background, ignored classes and 255 have no colour.

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
    """The overlay (h, w, 3) of an archive image, computed in bands of rows to save memory."""
    record = archive.records[index]
    picture = np.empty((record.height, record.width, 3), np.uint8)
    for start in range(0, record.height, _BAND):
        stop = min(start + _BAND, record.height)
        # One extra row on either side, because an outline depends on neighbouring rows.
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


def read_labels(path: Path) -> npt.NDArray[np.uint8]:
    """A class-index PNG as (h, w).

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged or not an image.
    """
    data = path.read_bytes()
    try:
        with decoding("picture"), open_picture(data) as picture:
            return np.array(picture, np.uint8)
    except Unreadable as error:
        raise ValueError(f"{path}: {error}") from error


def picture_name(image_id: str) -> str:
    """The file stem for an image id: ``/`` becomes ``__``, and long ids end in a hash.

    The result is never a path out of its folder, and has at most 150 bytes.
    """
    name = image_id.replace("/", "__").replace("\\", "__").replace("\0", "_").lstrip(".") or "_"
    data = name.encode("utf-8", "surrogatepass")
    if len(data) <= _LONGEST:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: _LONGEST - 17].decode('utf-8', 'ignore')}-{digest}"


def picture_names(ids: Iterable[str]) -> dict[str, str]:
    """:func:`picture_name` of each id; names that differ only by upper and lower case, which some file systems do not
    distinguish, end in a hash of the id."""
    names = {image_id: picture_name(image_id) for image_id in ids}
    count = Counter(name.casefold() for name in names.values())
    return {
        image_id: name
        if count[name.casefold()] == 1
        else f"{name}-{hashlib.sha256(image_id.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        for image_id, name in names.items()
    }


def _outline(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Pixels with a horizontal or vertical neighbour of another class."""
    edge = np.zeros(labels.shape, np.bool_)
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge

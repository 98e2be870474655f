"""The area of shapes as class indices. A pixel belongs to a shape if its centre is inside."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.format import IGNORE_INDEX, Collection
from pscl_hpc.archive.ingest.annotations.formats import Drawing, Points, Shape
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.mask_values import IGNORE

_BACKGROUND_LABEL, _IGNORE_LABELS = "_background_", ("__ignore__", IGNORE)
"""Labels with this meaning in LabelMe; ``ignore`` in all formats."""


def fill(
    drawing: Drawing, collection: Collection, height: int, width: int, shown: str, *, scribbles: bool = False
) -> npt.NDArray[np.uint8]:
    """(height, width) class indices; a later shape covers an earlier one.

    Args:
        collection: its classes are the labels; pixels outside all shapes are its background.
        shown: name of the file in messages.
        scribbles: pixels outside all shapes are not annotated.

    Raises:
        Unreadable: the drawing belongs to an image of another size, a label is no class, or the background is drawn
            outside other shapes, so that pixels without a shape may be not annotated.
    """
    if drawing.problem:
        raise Unreadable(f"{shown}: {drawing.problem}")
    if drawing.size is not None and drawing.size != (height, width):
        raise Unreadable(
            f"{shown} was drawn on an image of {drawing.size[0]} x {drawing.size[1]} pixels but the image has {height} x "
            f"{width}; draw it again or scale the image back"
        )
    indices = {label: _class_index(label, collection, shown, drawing.loose) for label in drawing.labels}
    outside = IGNORE_INDEX if scribbles else collection.background
    mask = np.full((height, width), outside, np.uint8)
    other = np.zeros((height, width), bool)
    background = np.zeros((height, width), bool)
    for shape in drawing.shapes:
        inside = area(shape, height, width)
        index = indices[shape.label]
        mask[inside] = index
        drawn = background if index == collection.background else other
        drawn |= inside
    if not scribbles and 2 * (background & ~other).sum() > background.sum():
        name = collection.classes[collection.background]
        raise Unreadable(
            f"{shown} has shapes of the class {name!r}, which is also the class of pixels outside all shapes; add "
            f"--scribbles if these are not annotated, remove the shapes of {name!r} if they are {name!r}, or "
            "name another first class"
        )
    return mask


def _class_index(label: str, collection: Collection, shown: str, loose: bool) -> int:
    classes = collection.classes
    if label == _BACKGROUND_LABEL:
        return collection.background
    folded = [name.casefold() for name in classes]
    for name in (label, re.sub(r"[ _-]*\d+$", "", label)) if loose else (label,):
        if name in classes:
            return classes.index(name)
        if folded.count(name.casefold()) == 1:
            return folded.index(name.casefold())
        if name in _IGNORE_LABELS:
            return IGNORE_INDEX
    if loose:
        return _class_of_object(label, collection, shown)
    raise Unreadable(
        f"{shown} has the label {label!r}, which is not a class of {collection.name} ({', '.join(collection.classes)}); "
        "add it to --classes or splits.json, or correct it"
    )


def _class_of_object(label: str, collection: Collection, shown: str) -> int:
    """The class of an ROI whose name is no class: that of its group, or the only one beside the background."""
    match = re.fullmatch(r"group (\d+)", label)
    if match and 0 < int(match[1]) < len(collection.classes):
        return int(match[1])
    others = [index for index in range(len(collection.classes)) if index != collection.background]
    if not match and len(others) == 1:
        return others[0]
    raise Unreadable(
        f"{shown} has the ROI {label!r}, whose class is not clear among {', '.join(collection.classes)}; rename the ROIs "
        f"to their classes, such as {collection.classes[others[0]] if others else 'carbide'}-1, or give them ROI groups "
        "(1 is the second class)"
    )


def area(shape: Shape, height: int, width: int) -> npt.NDArray[np.bool_]:
    """(height, width): the pixels whose centre is inside the shape."""
    found = _inside(shape.paths, height, width) if shape.paths else np.zeros((height, width), bool)
    if shape.pixels is not None:
        top, left = shape.corner
        bottom, right = top + shape.pixels.shape[0], left + shape.pixels.shape[1]
        rows = slice(max(0, top), max(0, min(height, bottom)))
        columns = slice(max(0, left), max(0, min(width, right)))
        part = shape.pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        found[rows, columns] |= part
    return found


def _inside(paths: tuple[Points, ...], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Even-odd rule: each crossing of a row to the left of a pixel centre changes between outside and inside."""
    crossings = np.zeros((height, width + 1), np.int32)
    for path in paths:
        for (x0, y0), (x1, y1) in zip(path, np.roll(path, -1, axis=0), strict=True):
            if y0 == y1:
                continue
            # Rows whose centre, row + 1/2, is in [smaller y, larger y).
            first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in sorted((y0, y1)))
            rows = np.arange(first, last)
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
            crossings[rows, columns] += 1
    inside: npt.NDArray[np.bool_] = np.cumsum(crossings[:, :width], axis=1) % 2 == 1
    return inside

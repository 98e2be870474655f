"""LabelMe JSON: one file per image."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from pscl_hpc.archive.ingest.annotations.formats import (
    Drawing,
    Shape,
    annotation_format,
    ellipse,
    points,
    rectangle,
)
from pscl_hpc.archive.ingest.annotations.json_content import json_object
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.images import open_picture


@annotation_format("LabelMe", ".json")
def read_labelme(data: bytes) -> tuple[list[Drawing], list[str]] | None:
    """``shapes`` with ``label``, ``shape_type`` (polygon, rectangle, circle or mask) and ``points``."""
    content = json_object(data)
    if content is None or not isinstance(content.get("shapes"), list):
        return None
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (int(height), int(width)) if height and width else None
    name = str(content.get("imagePath") or "")
    try:
        shapes = tuple(_shape(entry) for entry in content["shapes"])
    except Unreadable as error:
        return [Drawing(name, (), size, str(error))], []
    return [Drawing(name, shapes, size)], []


def _shape(entry: dict[str, Any]) -> Shape:
    label, kind, corners = str(entry["label"]), str(entry.get("shape_type") or "polygon"), entry["points"]
    if kind == "polygon":
        return Shape(label, (points(corners),))
    if kind == "rectangle":
        (x0, y0), (x1, y1) = corners[0], corners[len(corners) // 2]
        return Shape(label, (rectangle(x0, y0, x1, y1),))
    if kind == "circle":
        (x, y), (edge_x, edge_y) = corners
        radius = math.hypot(edge_x - x, edge_y - y)
        return Shape(label, (ellipse(x, y, radius, radius),))
    if kind == "mask" and entry.get("mask"):
        with open_picture(base64.b64decode(entry["mask"])) as image:
            pixels = np.asarray(image) > 0
        (x, y), _ = corners
        return Shape(label, pixels=pixels, corner=(round(y), round(x)))
    raise Unreadable(
        f"a shape of {label!r} is a {kind}, which has no area; draw polygons, rectangles, circles or masks"
    )

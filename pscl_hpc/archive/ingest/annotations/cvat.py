"""CVAT XML (CVAT for images 1.1): shapes of many images in one file."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pscl_hpc.archive.ingest.annotations.formats import (
    Drawing,
    Points,
    Shape,
    annotation_format,
    ellipse,
    from_runs,
    points,
    rectangle,
    rotated,
)
from pscl_hpc.archive.ingest.errors import Unreadable

_NO_AREA = ("polyline", "points", "cuboid", "skeleton")


@annotation_format("CVAT", ".xml")
def read_cvat(data: bytes) -> tuple[list[Drawing], list[str]] | None:
    """``<image>`` elements with polygons, boxes, ellipses and masks, covered in the order of ``z_order``."""
    if b"<annotations" not in data[:4096] or b"<!DOCTYPE" in data[:4096] or b"<!ENTITY" in data:
        return None
    root = ElementTree.fromstring(data)
    labels = [found.text or "" for found in root.iterfind(".//label/name")]
    drawings = []
    for image in root.iter("image"):
        size = (int(image.attrib["height"]), int(image.attrib["width"]))
        entries = [entry for entry in image if "label" in entry.attrib and entry.tag != "tag"]
        entries.sort(key=lambda entry: int(entry.get("z_order", "0")))
        try:
            shapes = tuple(map(_shape, entries))
            drawings.append(Drawing(image.attrib["name"], shapes, size))
        except Unreadable as error:
            drawings.append(Drawing(image.attrib["name"], (), size, str(error)))
    if root.find("track") is not None:
        raise Unreadable("it has tracks of a video; export as 'CVAT for images'")
    return drawings, labels


def _shape(entry: Element) -> Shape:
    label = entry.attrib["label"]
    if entry.tag == "polygon":
        pairs = [pair.split(",") for pair in entry.attrib["points"].split(";")]
        return Shape(label, (points(pairs),))
    if entry.tag == "box":
        left, top, right, bottom = (float(entry.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        outline = rectangle(left, top, right, bottom)
        return Shape(label, (_turned(entry, outline, (left + right) / 2, (top + bottom) / 2),))
    if entry.tag == "ellipse":
        x, y, across, down = (float(entry.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
        return Shape(label, (_turned(entry, ellipse(x, y, across, down), x, y),))
    if entry.tag == "mask":
        runs = [int(run) for run in entry.attrib["rle"].split(",")]
        height, width, top, left = (
            int(float(entry.attrib[key])) for key in ("height", "width", "top", "left")
        )
        return Shape(label, pixels=from_runs(runs, height, width), corner=(top, left))
    what = "has no area" if entry.tag in _NO_AREA else "is not read"
    raise Unreadable(f"a shape of {label!r} is a {entry.tag}, which {what}; draw polygons, boxes or masks")


def _turned(entry: Element, outline: Points, x: float, y: float) -> Points:
    return rotated(outline, float(entry.get("rotation", "0")), x, y)

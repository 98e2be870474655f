"""COCO JSON: polygons and run-length codes of many images in one file."""

from __future__ import annotations

from typing import Any

import numpy as np

from pscl_hpc.archive.ingest.annotations.formats import Drawing, Shape, annotation_format, from_runs, points
from pscl_hpc.archive.ingest.annotations.json_content import json_object
from pscl_hpc.archive.ingest.errors import Unreadable


@annotation_format("COCO", ".json")
def read_coco(data: bytes) -> tuple[list[Drawing], list[str]] | None:
    """``images``, ``annotations`` and ``categories``."""
    content = json_object(data)
    if content is None or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    ):
        return None
    labels = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
    by_image: dict[Any, list[dict[str, Any]]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        if entry["image_id"] in by_image:
            by_image[entry["image_id"]].append(entry)
    drawings = []
    for entry in content["images"]:
        size = (int(entry["height"]), int(entry["width"]))
        name = str(entry["file_name"])
        try:
            shapes = tuple(_shape(found, labels, size) for found in by_image[entry["id"]])
            drawings.append(Drawing(name, shapes, size))
        except Unreadable as error:
            drawings.append(Drawing(name, (), size, str(error)))
    return drawings, list(labels.values())


def _shape(entry: dict[str, Any], labels: dict[Any, str], size: tuple[int, int]) -> Shape:
    label = labels.get(entry["category_id"])
    if label is None:
        raise Unreadable(f"an annotation has the category {entry['category_id']}, which is not in the file")
    area = entry.get("segmentation")
    if isinstance(area, dict):
        height, width = (int(side) for side in area["size"])
        counts = area["counts"]
        runs = _from_text(counts) if isinstance(counts, str) else counts
        return Shape(label, pixels=from_runs(runs, width, height).T)  # the codes run down the columns
    if not area:
        raise Unreadable(f"an annotation of {label!r} is only a box; export polygons or masks")
    outlines = area if isinstance(area[0], list) else [area]
    # The parts of one object are united, even where they overlap.
    parts = [Shape(label, (points(outline),)) for outline in outlines]
    if len(parts) == 1:
        return parts[0]
    return Shape(label, pixels=_united(parts, size))


def _united(parts: list[Shape], size: tuple[int, int]) -> Any:
    from pscl_hpc.archive.ingest.annotations.area import area

    return np.logical_or.reduce([area(part, *size) for part in parts])


def _from_text(text: str) -> list[int]:
    """Run lengths of a compressed code: groups of 5 bits from character 48 on, differences to the run before the last."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        while True:
            group = ord(text[place]) - 48
            value |= (group & 31) << shift
            place, shift = place + 1, shift + 5
            if not group & 32:
                break
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs

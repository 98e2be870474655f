"""The size of a pixel from the OME-XML of an OME-TIFF (schema 2016-06, element Pixels)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from xml.parsers import expat

_DEFAULT_UNIT = "\u00b5m"
"""Of the schema; older ones have no other."""
_SAME = 1e-3
"""Relative difference of two sizes that are taken for one."""


class _Refused(Exception):
    pass


def um_per_pixel_of(text: str, units: Mapping[str, float]) -> float | None:
    """Micrometres per pixel, where the text tells one for all images and both directions.

    Args:
        text: from a file that anyone may have written: one with a document type, so with entities, is not read.
        units: name -> micrometres.

    Returns:
        None where there is none, the unit is unknown, the pixels are not square or the XML is damaged.
    """
    sizes: list[float | None] = []

    def element(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(" ")[2] == "Pixels":
            sizes.append(_square(attributes, units))

    def doctype(*_: object) -> None:
        raise _Refused

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, _Refused, ValueError):
        return None
    first = sizes[0] if sizes else None
    if first is None or any(size is None or not _alike(size, first) for size in sizes):
        return None
    return first


def _square(attributes: Mapping[str, str], units: Mapping[str, float]) -> float | None:
    """Micrometres per pixel of one image; a size that is told for one direction alone is that of both."""
    told = [
        float(attributes[key]) * units.get(attributes.get(f"{key}Unit", _DEFAULT_UNIT).strip(), math.nan)
        for key in ("PhysicalSizeX", "PhysicalSizeY")
        if key in attributes
    ]
    if (
        not told
        or not all(math.isfinite(size) and size > 0 for size in told)
        or not _alike(told[0], told[-1])
    ):
        return None
    return told[0]


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME)

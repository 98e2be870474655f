"""Micrometres per pixel and magnification from the tags that microscopes write into TIFF files.

Supported: FEI / Thermo Fisher (tag 34682), Zeiss SEM (34118), Olympus SIS (33560), OME-XML and ImageJ. The plain
resolution tags are ignored, because most programs write the dots per inch of a screen there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any
from xml.parsers import expat

import tifffile

Scale = tuple[float | None, float | None]
"""(micrometres per pixel, magnification), None where unknown."""

_UM = {"pm": 1e-6, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UM |= {"\u00c5": 1e-4, "\u212b": 1e-4}  # two signs for one ångström
_UM |= {"micron": 1.0, "microns": 1.0}
_UM |= {"\\u00b5m": 1.0, "\\u00B5m": 1.0}  # ImageJ writes its unit in ASCII

_OME_UNIT = "\u00b5m"
"""Default unit of the OME schema."""


def scale_of(file: tifffile.TiffFile) -> Scale:
    """The first scale found in the tags of a file; (None, None) when there is none."""
    readers: tuple[tuple[str, Callable[[Mapping[str, Any]], Scale]], ...] = (
        ("fei_metadata", _fei),
        ("sem_metadata", _zeiss),
        ("sis_metadata", _olympus),
    )
    for attribute, read in readers:
        try:
            tags = getattr(file, attribute)
            um_per_pixel, magnification = read(tags) if isinstance(tags, Mapping) else (None, None)
        except (KeyError, ValueError, TypeError, IndexError):
            continue  # damaged tags are ignored
        if um_per_pixel or magnification:
            return _positive(um_per_pixel), _positive(magnification)
    return _positive(_ome(file)) or _positive(_imagej(file)), None


def _fei(tags: Mapping[str, Any]) -> Scale:
    for section in ("Scan", "EScan", "IScan"):
        width = tags.get(section, {}).get("PixelWidth")
        if width:
            return float(width) * 1e6, None
    return None, None


def _zeiss(tags: Mapping[str, Any]) -> Scale:
    um_per_pixel = magnification = None
    for key in ("ap_image_pixel_size", "ap_pixel_size"):
        if key in tags:
            _, value, unit = tags[key]
            um_per_pixel = float(value) * _UM[str(unit).strip()]
            break
    if "ap_mag" in tags:
        _, value, *unit = tags["ap_mag"]
        text = str(value).upper().replace("X", "").strip()
        kilo = text.endswith("K") or (bool(unit) and str(unit[0]).strip().upper().startswith("K"))
        magnification = float(text.rstrip("K").strip()) * (1000 if kilo else 1)
    return um_per_pixel, magnification


def _olympus(tags: Mapping[str, Any]) -> Scale:
    size, magnification = tags.get("pixelsizex"), tags.get("magnification")
    return (float(size) * 1e6 if size else None), (float(magnification) if magnification else None)


class _Refused(Exception):
    pass


def _ome(file: tifffile.TiffFile) -> float | None:
    """Micrometres per pixel from OME-XML (schema 2016-06, element Pixels), equal for all images and directions.

    None if the unit is unknown, the pixels are not square or the XML is damaged. The XML is not trusted: one with a
    document type, and so with entities, is refused.
    """
    text = file.ome_metadata
    if not text:
        return None
    sizes: list[float | None] = []

    def element(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(" ")[2] == "Pixels":
            sizes.append(_square(attributes))

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


def _square(attributes: Mapping[str, str]) -> float | None:
    """Micrometres per pixel of one image; a size given for only one direction applies to both."""
    sizes = [
        float(attributes[key]) * _UM.get(attributes.get(f"{key}Unit", _OME_UNIT).strip(), math.nan)
        for key in ("PhysicalSizeX", "PhysicalSizeY")
        if key in attributes
    ]
    if not sizes or any(_positive(size) is None for size in sizes) or not _alike(sizes[0], sizes[-1]):
        return None
    return sizes[0]


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-3)


def _imagej(file: tifffile.TiffFile) -> float | None:
    tags = file.imagej_metadata
    resolution = file.pages[0].aspage().tags.get("XResolution")
    if not tags or resolution is None:
        return None
    unit = _UM.get(str(tags.get("unit", "")).strip())
    numerator, denominator = resolution.value
    return unit * denominator / numerator if unit and numerator else None


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None

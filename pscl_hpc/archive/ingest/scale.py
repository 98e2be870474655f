"""Micrometres per pixel and magnification from the tags that microscopes write into TIFF files.

Supported: FEI / Thermo Fisher (tag 34682), Zeiss SEM (34118), Olympus SIS (33560), OME-XML, ImageJ, Gatan (65003 to
65010) and the texts of :mod:`.scale_text`. The plain resolution tags are ignored, because most programs write the dots
per inch of a screen there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any
from xml.parsers import expat

import tifffile

from pscl_hpc.archive.ingest.scale_text import UM, Scale, aperio_scale, tescan_scale, xml_scale

_DESCRIPTION, _FEI_XML, _TESCAN = 270, 34683, 50431
"""Numbers of tags with text."""
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
    own = _positive(_ome(file)) or _positive(_imagej(file)) or _positive(_gatan(file))
    return (own, None) if own else _of_text_tags(file)


def _of_text_tags(file: tifffile.TiffFile) -> Scale:
    page = file.pages.first
    for number, read in ((_TESCAN, tescan_scale), (_FEI_XML, xml_scale), (_DESCRIPTION, xml_scale)):
        um_per_pixel, magnification = read(_text_of(page.tags.valueof(number)))
        if _positive(um_per_pixel) or _positive(magnification):
            return _positive(um_per_pixel), _positive(magnification)
    um_per_pixel, magnification = aperio_scale(_text_of(page.tags.valueof(_DESCRIPTION)))
    return _positive(um_per_pixel), _positive(magnification)


def _text_of(value: object) -> str:
    if isinstance(value, tuple) and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        value = bytes(value)
    return (
        value.decode("utf-8", "replace")
        if isinstance(value, bytes)
        else value
        if isinstance(value, str)
        else ""
    )


def _gatan(file: tifffile.TiffFile) -> float | None:
    """Tags 65003 to 65010 of Gatan Microscopy Suite, if both directions agree."""
    tags = file.pages.first.tags
    sizes = []
    for unit, size in ((65003, 65009), (65004, 65010)):
        text, value = tags.valueof(unit), tags.valueof(size)
        if not isinstance(text, str) or not isinstance(value, float):
            return None
        sizes.append(value * UM.get(text.strip("\0 "), math.nan))
    return sizes[0] if _alike(*sizes) else None


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
            um_per_pixel = float(value) * UM[str(unit).strip()]
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
        raise ValueError

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError):
        return None
    first = sizes[0] if sizes else None
    if first is None or any(size is None or not _alike(size, first) for size in sizes):
        return None
    return first


def _square(attributes: Mapping[str, str]) -> float | None:
    """Micrometres per pixel of one image; a size given for only one direction applies to both."""
    sizes = [
        float(attributes[key]) * UM.get(attributes.get(f"{key}Unit", _OME_UNIT).strip(), math.nan)
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
    unit = UM.get(str(tags.get("unit", "")).strip())
    numerator, denominator = resolution.value
    return unit * denominator / numerator if unit and numerator else None


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None

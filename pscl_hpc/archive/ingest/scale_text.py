"""Micrometres per pixel and magnification from text of microscopes: tags of TIFF files, and files beside an image.

Thermo Fisher / FEI XML (tag 34683, or the description of Phenom images), TESCAN (tag 50431 or a ``.hdr`` file), Aperio
descriptions, and the ``.txt`` files of JEOL and Hitachi.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from xml.parsers import expat

Scale = tuple[float | None, float | None]
"""(micrometres per pixel, magnification), None where unknown."""

UM = {"pm": 1e-6, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
UM |= {"\u00c5": 1e-4, "\u212b": 1e-4}  # two signs for one ångström
UM |= {"micron": 1.0, "microns": 1.0}
UM |= {"\\u00b5m": 1.0, "\\u00B5m": 1.0}  # ImageJ writes its unit in ASCII
"""Micrometres of the units that microscopes write."""
_MAX_BYTES = 1 << 20
"""Of a text that is searched."""


def tescan_scale(text: str) -> Scale:
    """The INI text of TESCAN: ``PixelSizeX`` and ``PixelSizeY`` in metres, ``Magnification``."""
    pairs = _pairs(text)
    x, y = _number(pairs.get("PixelSizeX")), _number(pairs.get("PixelSizeY"))
    square = x is not None and (y is None or abs(x - y) <= 1e-3 * x)
    return (x * 1e6 if x is not None and square else None), _number(pairs.get("Magnification"))


def xml_scale(text: str) -> Scale:
    """XML of Thermo Fisher: ``<PixelSize><X unit="m">`` or, of Phenom, ``<pixelWidth unit="nm">``."""
    found: list[float] = []
    path: list[str] = []
    unit = content = ""

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal unit, content
        path.append(name.rpartition(":")[2])
        unit, content = attributes.get("unit", ""), ""

    def data(part: str) -> None:
        nonlocal content
        content += part

    def end(_: str) -> None:
        if (path[-2:] == ["PixelSize", "X"] or path[-1] == "pixelWidth") and (value := _number(content)):
            found.append(value * UM[unit.strip()])
        path.pop()

    def doctype(*_: object) -> None:
        raise ValueError("XML with entities is not trusted")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.CharacterDataHandler, parser.EndElementHandler = start, data, end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(text.strip().strip("\0"), True)
    except (expat.ExpatError, ValueError, KeyError):
        return None, None
    return (found[0] if found else None), None


def aperio_scale(text: str) -> Scale:
    """The description of Aperio: ``|MPP = 0.25|`` and ``|AppMag = 20|``."""
    if not text.startswith("Aperio"):
        return None, None
    pairs = dict(part.partition("=")[::2] for part in text.split("|") if "=" in part)
    plain = {name.strip(): value.strip() for name, value in pairs.items()}
    return _number(plain.get("MPP")), _number(plain.get("AppMag"))


def scale_beside(path: Path) -> Scale:
    """The scale in a file that a microscope wrote beside an image; (None, None) without one."""
    names = {path.stem: (".txt", ".hdr"), path.name: (".txt",), f"{path.stem}-{path.suffix[1:]}": (".hdr",)}
    for stem, suffixes in names.items():
        for suffix in suffixes:
            for ending in (suffix, suffix.upper()):
                text = _text(path.with_name(stem + ending))
                found = _of_text(text) if text else (None, None)
                if any(found):
                    return found
    return None, None


def _of_text(text: str) -> Scale:
    pairs = _pairs(text)
    if bar := _number(pairs.get("$$SM_MICRON_BAR")):  # JEOL: pixels of the scale bar, and what they mean
        match = re.fullmatch(r"([\d.]+)\s*(\S+)", pairs.get("$$SM_MICRON_MARKER", ""))
        length = _number(match[1]) if match else None
        unit = UM.get(match[2]) if match else None
        um = length * unit / bar if length and unit else None
        return um, _number(pairs.get("$CM_MAG"))
    if "[SemImageFile]" in text:  # Hitachi: nanometres
        size = _number(pairs.get("PixelSize"))
        return (size * 1e-3 if size else None), _number(pairs.get("Magnification"))
    return tescan_scale(text) if "PixelSizeX" in pairs else (None, None)


def _pairs(text: str) -> Mapping[str, str]:
    """Lines ``name=value`` of INI files and ``$NAME value`` of JEOL; the first of several with one name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, mark, value = line.partition(" " if line.startswith("$") else "=")
        if mark:
            found.setdefault(name.strip(), value.strip().strip("\0"))
    return found


def _text(path: Path) -> str:
    try:
        if not os.path.isfile(path):
            return ""
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError:
        return ""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # The micrometre of Western and of Japanese Windows.
        return data.decode("cp1252" if b"\xb5m" in data else "cp932", "replace")


def _number(text: str | None) -> float | None:
    """A positive number, None for any other text."""
    try:
        value = float(text.replace(",", ".")) if text else 0.0
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None

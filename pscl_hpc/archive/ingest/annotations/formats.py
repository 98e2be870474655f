"""What annotation files contain, and the table of their formats."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.ingest.errors import Unreadable, decoding

Points = npt.NDArray[np.float64]
"""(n, 2): x to the right and y downwards in pixels; 0, 0 is the corner of the image."""


@dataclass(frozen=True, eq=False)
class Shape:
    """An area with one label: closed paths (a point is inside if it is inside an odd number of them), or pixels."""

    label: str
    paths: tuple[Points, ...] = ()
    pixels: npt.NDArray[np.bool_] | None = None
    """(h, w), placed at ``corner``."""
    corner: tuple[int, int] = (0, 0)
    """Row and column of the upper left pixel of ``pixels``; may be outside the image."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """The shapes of one image, the lowest first."""

    image: str
    """Name or path of the image as in the file; empty if only the name of the file tells."""
    shapes: tuple[Shape, ...]
    size: tuple[int, int] | None = None
    """Height and width of the image that was annotated, if the file tells."""
    problem: str = ""
    """Why the shapes cannot be used."""
    loose: bool = False
    """Labels are names of objects: a number may follow the class, and there may be none."""

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(shape.label for shape in self.shapes))

    def digest(self, *, scribbles: bool) -> str:
        """SHA-256 of the shapes and their meaning."""
        found = hashlib.sha256(f"{self.size} {self.loose} {scribbles}".encode())
        for shape in self.shapes:
            found.update(f"{shape.label} {shape.corner} {[path.tolist() for path in shape.paths]}".encode())
            if shape.pixels is not None:
                found.update(f"{shape.pixels.shape}".encode() + np.packbits(shape.pixels).tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """One annotation file."""

    path: Path
    format: str
    drawings: tuple[Drawing, ...]
    labels: tuple[str, ...] = field(default=())
    """All labels that the file lists, in its order."""


Reader = Callable[[bytes], tuple[Sequence[Drawing], Sequence[str]] | None]
"""From the content of a file to its drawings and labels; None if the file has another format."""
_FORMATS: dict[str, tuple[tuple[str, ...], Reader]] = {}


def annotation_format(name: str, *suffixes: str) -> Callable[[Reader], Reader]:
    """Decorator of the reader of a format; ``name`` is how people write it."""

    def add(reader: Reader) -> Reader:
        _FORMATS[name] = suffixes, reader
        return reader

    return add


@cache
def _formats() -> dict[str, tuple[tuple[str, ...], Reader]]:
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _FORMATS


def annotation_suffixes() -> tuple[str, ...]:
    """Endings of annotation files."""
    return tuple(sorted({suffix for suffixes, _ in _formats().values() for suffix in suffixes}))


def read_annotations(path: Path) -> AnnotationFile | None:
    """The content of an annotation file; None if it is none.

    Raises:
        Unreadable: it is damaged, or an extra is missing.
    """
    suffix = path.suffix.lower()
    readers = {name: reader for name, (suffixes, reader) in _formats().items() if suffix in suffixes}
    if not readers:
        return None
    with decoding(f"annotation file {path.name}"):
        data = path.read_bytes()
        for name, reader in readers.items():
            found = reader(data)
            if found is not None:
                drawings, labels = found
                own = (label for drawing in drawings for label in drawing.labels)
                return AnnotationFile(path, name, tuple(drawings), tuple(dict.fromkeys((*labels, *own))))
    return None


def points(values: Any) -> Points:
    """(n, 2) from a list of pairs or a flat list; Unreadable unless these are at least 3 finite points."""
    found = np.asarray(values, np.float64).reshape(-1, 2)
    if len(found) < 3 or not np.isfinite(found).all():
        raise Unreadable(f"a polygon of {len(found)} points has no area")
    return found


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """The corners of a rectangle, in any order of its sides."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)


def ellipse(x: float, y: float, across: float, down: float) -> Points:
    """An ellipse with centre (x, y) and these radii as a polygon of 360 points."""
    turn = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    return np.stack([x + across * np.cos(turn), y + down * np.sin(turn)], axis=1)


def rotated(outline: Points, degrees: float, x: float, y: float) -> Points:
    """The outline turned clockwise, as seen on the screen, about (x, y)."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned: Points = (outline - (x, y)) @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
    return turned


def from_runs(counts: Sequence[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """(h, w) pixels of a row-major run-length code that begins with a run outside.

    Raises:
        Unreadable: the runs do not fill the rectangle.
    """
    runs = np.asarray(counts, np.int64)
    if height < 0 or width < 0 or (runs < 0).any() or runs.sum() != height * width:
        raise Unreadable(f"a run-length code does not fill {height} x {width} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)

"""The archive format: names, versions and the records that the reader and the writer share.

One HDF5 file (a *shard*) holds

* ``/tiles/<pool>``: pools of 256 x 256 tiles, one dataset per (dtype, channels) plus ``mask``; every chunk is
  one tile. An image occupies consecutive tiles in row-major order, so images of any size share one
  dataset and a crop touches only the tiles under it. Edge tiles are padded with zeros that no reader sees.
* ``/images/<column>``: the index, one 1-D dataset per field of :class:`Row`; older files lack ``ingest``.
* ``/collections``: the class lists, a JSON string.

Root attributes ``format`` and ``version`` identify the file. A folder of shards is listed by ``manifest.json``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TypeVar

import numpy as np

from pscl_hpc.archive.options import IngestOptions, options_from_json

FORMAT = "pscl-hpc-archive"
VERSION = 1
MANIFEST = "manifest.json"

TILE = 256
"""Side of a tile in pixels; also the HDF5 chunk."""
IGNORE_INDEX = 255
"""Mask value of a pixel that nobody annotated."""
MAX_CLASSES = IGNORE_INDEX

_Scalar = TypeVar("_Scalar", str, int)

MASK_POOL = "mask"
DTYPES = ("uint8", "uint16", "float32")
CHANNELS = (1, 3)

Window = tuple[int, int, int, int]
"""(y0, x0, height, width) in pixels."""


@dataclass(frozen=True)
class ImageRecord:
    """One micrograph of an archive, as readers see it."""

    index: int
    """Position in the archive, 0-based over all shards; records are sorted by ``id``."""
    id: str
    """``"<dataset>/<stem>"``, unique in the archive."""
    dataset: str
    """Name of the collection."""
    source: str
    """Path of the source file relative to the folder it was packed from."""
    sha256: str
    """SHA-256 of the source file."""
    height: int
    width: int
    channels: int
    """1 (grey) or 3 (true colour)."""
    dtype: str
    """``"uint8"``, ``"uint16"`` or ``"float32"``, as stored."""
    low: float
    """Intensity that :meth:`Archive.read_unit` maps to 0."""
    high: float
    """Intensity that :meth:`Archive.read_unit` maps to 1."""
    split: str
    """``"train"``, ``"val"``, ``"test"``, ``"test_ood"``, ... or ``""`` when not given."""
    specimen: str
    condition: str
    alloy: str
    magnification: float | None
    um_per_pixel: float | None
    has_mask: bool
    ingest: IngestOptions | None
    """How the file became these pixels; None where it is not recorded."""


@dataclass(frozen=True)
class Collection:
    """One dataset inside the archive, with its own class list."""

    name: str
    classes: tuple[str, ...] = ()
    background: int = 0
    ignore_classes: tuple[int, ...] = ()
    """Classes that are never scored."""
    references: tuple[str, ...] = ()
    """Ids of images that may each serve as the one annotated image."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"collection name {self.name!r} must be non-empty and hold no '/'")
        if len(self.classes) > MAX_CLASSES:
            raise ValueError(
                f"collection {self.name}: at most {MAX_CLASSES} classes, got {len(self.classes)}"
            )
        known = range(len(self.classes))
        if self.classes and self.background not in known:
            raise ValueError(f"collection {self.name}: background {self.background} is not a class index")
        for index in self.ignore_classes:
            if index not in known:
                raise ValueError(f"collection {self.name}: ignored class {index} is not a class index")


def unite(old: Collection, new: Collection) -> Collection:
    """One collection described twice: an empty class list gives way, references are joined.

    Raises:
        ValueError: both have classes and they differ, so the same mask value would mean two things.
    """
    classes = new if new.classes else old
    for other in (old, new):
        if other.classes and replace(other, references=()) != replace(classes, references=()):
            raise ValueError(f"collection {new.name} has other classes")
    return replace(classes, references=tuple(dict.fromkeys(old.references + new.references)))


@dataclass(frozen=True)
class Row:
    """One row of the stored index. Every field is a column; ``NaN`` and ``""`` mean unknown."""

    id: str
    dataset: str
    source: str
    sha256: str
    mask_sha256: str
    """SHA-256 of the source mask file, ``""`` without one."""
    pixel_checksum: str
    """SHA-256 of the stored pixels, row-major, little-endian, without padding."""
    mask_checksum: str
    pool: str
    first_tile: int
    mask_first_tile: int
    """-1 where there is no mask."""
    height: int
    width: int
    low: float
    high: float
    split: str
    specimen: str
    condition: str
    alloy: str
    magnification: float
    um_per_pixel: float
    ingest: str
    """The options that the file was packed with, see ``options``; ``""`` in files from before they were recorded."""

    @property
    def tiles(self) -> int:
        return tile_count(self.height, self.width)

    def record(self, index: int) -> ImageRecord:
        dtype, channels = parse_pool(self.pool)
        return ImageRecord(
            index=index,
            id=self.id,
            dataset=self.dataset,
            source=self.source,
            sha256=self.sha256,
            height=self.height,
            width=self.width,
            channels=channels,
            dtype=dtype,
            low=self.low,
            high=self.high,
            split=self.split,
            specimen=self.specimen,
            condition=self.condition,
            alloy=self.alloy,
            magnification=None if math.isnan(self.magnification) else self.magnification,
            um_per_pixel=None if math.isnan(self.um_per_pixel) else self.um_per_pixel,
            has_mask=self.mask_first_tile >= 0,
            ingest=options_from_json(self.ingest),
        )


COLUMN_TYPES: dict[str, str] = {field.name: str(field.type) for field in fields(Row)}
"""Column name -> ``"str"``, ``"int"`` or ``"float"``."""

OPTIONAL_COLUMNS = ("ingest",)
"""Text columns that files from before them do not have."""

_NO_CONTENT = ("source", "first_tile", "mask_first_tile", "ingest")
"""Columns that say where something lies or how it was made, not what it is: they do not enter the fingerprint."""


def pool_name(dtype: str, channels: int) -> str:
    return f"{dtype}x{channels}"


POOLS = tuple(pool_name(dtype, channels) for dtype in DTYPES for channels in CHANNELS)


def parse_pool(name: str) -> tuple[str, int]:
    """``"uint16x3"`` -> ``("uint16", 3)``; :data:`MASK_POOL` is ``("uint8", 1)``."""
    if name == MASK_POOL:
        return "uint8", 1
    if name not in POOLS:
        raise ValueError(f"unknown tile pool {name!r}")
    dtype, _, channels = name.rpartition("x")
    return dtype, int(channels)


def tile_grid(height: int, width: int) -> tuple[int, int]:
    """Tiles down and across an image of ``height`` x ``width`` pixels."""
    return -(-height // TILE), -(-width // TILE)


def tile_count(height: int, width: int) -> int:
    down, across = tile_grid(height, width)
    return down * across


def tile_shape(channels: int) -> tuple[int, ...]:
    """Shape of one tile: (256, 256) for one channel, (256, 256, 3) for three."""
    return (TILE, TILE) if channels == 1 else (TILE, TILE, channels)


def stored_dtype(dtype: str) -> np.dtype[np.generic]:
    """The little-endian dtype of a pool, whatever the machine."""
    return np.dtype(dtype).newbyteorder("<")


def fingerprint(rows: Iterable[Row], collections: Iterable[Collection]) -> str:
    """SHA-256 over what the archive holds: pixels, masks, ids and metadata.

    Independent of paths, machines, shards, compression and the order or number of builds that made it.
    """
    digest = hashlib.sha256(f"{FORMAT} {VERSION}\n".encode())
    for collection in sorted(collections, key=lambda item: item.name):
        digest.update(json.dumps(asdict(collection), sort_keys=True).encode() + b"\n")
    for row in sorted(rows, key=lambda item: item.id):
        values = {name: value for name, value in vars(row).items() if name not in _NO_CONTENT}
        digest.update(json.dumps(values, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def collections_to_json(collections: Sequence[Collection]) -> str:
    return json.dumps([asdict(item) for item in sorted(collections, key=lambda item: item.name)])


def collections_from_json(text: str) -> dict[str, Collection]:
    """Parse :func:`collections_to_json`; ValueError, TypeError or KeyError when it is anything else."""
    found: dict[str, Collection] = {}
    for item in json.loads(text):
        collection = Collection(
            name=_typed(item["name"], str),
            classes=tuple(_typed(name, str) for name in item["classes"]),
            background=_typed(item["background"], int),
            ignore_classes=tuple(_typed(index, int) for index in item["ignore_classes"]),
            references=tuple(_typed(image, str) for image in item["references"]),
        )
        if collection.name in found:
            raise ValueError(f"collection {collection.name} is listed twice")
        found[collection.name] = collection
    return found


def _typed(value: object, kind: type[_Scalar]) -> _Scalar:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return value

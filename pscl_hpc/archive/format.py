"""The archive format: names, versions, and the records that the reader and the writer share.

One HDF5 file (a *shard*) contains

* ``/tiles/<pool>/<block>``: pixels, one pool per (dtype, channels) plus ``mask``. A block is either *flat*, a 1-D
  contiguous dataset with the pixels of many images one after the other, or *tiled*, a dataset of compressed square tiles,
  one HDF5 chunk each. Images share blocks, so small ones take little more space than their pixels.
* ``/images``: the index, one fixed-width record per image, sorted by id; see :class:`Row` and ``index``.
* ``/names/<column>``: the texts to which the numbers in a column of the index refer.
* ``/collections``: the class lists, a JSON string.

The root attributes ``format`` and ``version`` identify the file, and ``fingerprint`` its content. ``manifest.json`` lists
the shards of a folder.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.options import IngestOptions, options_from_json

FORMAT = "pscl-hpc-archive"
VERSION = 2
MANIFEST = "manifest.json"

TILE = 256
"""Side of a tile of a flat block in pixels. Tiles at the right and lower edges are smaller."""
PACKED_TILES = (64, 128)
"""Sides of the tiles of tiled blocks: the first for images that fit into one tile, the second for larger ones."""
IGNORE_INDEX = 255
"""Mask value of a pixel that is not annotated."""
MAX_CLASSES = IGNORE_INDEX

_Scalar = TypeVar("_Scalar", str, int)

MASK_POOL = "mask"
DTYPES = ("uint8", "uint16", "float32")
CHANNELS = (1, 3)

Window = tuple[int, int, int, int]
"""(y0, x0, height, width) in pixels."""
Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageRecord:
    """One micrograph of an archive."""

    index: int
    """Position in the archive, 0-based over all shards; records are sorted by ``id``."""
    id: str
    """``"<dataset>/<stem>"``, unique in the archive."""
    dataset: str
    """Name of its collection."""
    source: str
    """Path of the source file, relative to the folder it was packed from."""
    sha256: str
    """SHA-256 of the source file."""
    height: int
    width: int
    channels: int
    """1 (grey) or 3 (colour)."""
    dtype: str
    """``"uint8"``, ``"uint16"`` or ``"float32"``, as stored."""
    low: float
    """Intensity that :meth:`Archive.read_unit` maps to 0."""
    high: float
    """Intensity that :meth:`Archive.read_unit` maps to 1."""
    split: str
    """``"train"``, ``"val"``, ``"test"``, ``"test_ood"``, ... or ``""`` for none."""
    specimen: str
    production_batch: str
    """Images of one heat treatment or production run."""
    alloy: str
    magnification: float | None
    um_per_pixel: float | None
    has_mask: bool
    ingest: IngestOptions | None
    """The options by which the file became these pixels; None where they are not recorded."""


@dataclass(frozen=True)
class Collection:
    """One dataset of the archive, with its class list."""

    name: str
    classes: tuple[str, ...] = ()
    background: int = 0
    ignore_classes: tuple[int, ...] = ()
    """Classes that are never scored."""
    references: tuple[str, ...] = ()
    """Ids of images each of which may serve as the one annotated image."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"collection name {self.name!r} must not be empty or contain '/'")
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
    """Combine two descriptions of a collection: the class list that is not empty, and the references of both.

    Raises:
        ValueError: both have classes and they differ, so a mask value would have two meanings.
    """
    classes = new if new.classes else old
    for other in (old, new):
        if other.classes and replace(other, references=()) != replace(classes, references=()):
            raise ValueError(f"collection {new.name} has other classes")
    return replace(classes, references=tuple(dict.fromkeys(old.references + new.references)))


def check_mask(mask: Pixels, height: int, width: int, collection: Collection) -> None:
    """ValueError unless ``mask`` is (height, width) class indices of ``collection`` or 255."""
    if mask.shape != (height, width):
        raise ValueError(
            f"the mask has {' x '.join(map(str, mask.shape))} pixels but the image {height} x {width}"
        )
    if mask.dtype.kind not in "ui":
        raise ValueError(f"the mask has {mask.dtype} values, not class indices")
    count = len(collection.classes)
    wrong = [value for value in mask_values(mask) if not (0 <= value < count or value == IGNORE_INDEX)]
    if wrong and not count:
        raise ValueError(f"collection {collection.name} has no classes, so its images cannot have masks")
    if wrong:
        shown = f"{', '.join(map(str, wrong[:8]))}{' ...' if len(wrong) > 8 else ''}"
        noun = "value" if len(wrong) == 1 else "values"
        raise ValueError(
            f"the mask has the {noun} {shown} but collection {collection.name} has classes 0 to {count - 1}"
        )


def mask_values(mask: Pixels) -> list[int]:
    """The distinct values of an integer mask, ascending."""
    if mask.dtype == np.uint8:
        return [int(value) for value in np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256))]
    return [int(value) for value in np.unique(mask)]


@dataclass(frozen=True, slots=True)
class Row:
    """One record of the stored index; ``NaN`` and ``""`` mean unknown."""

    id: str
    dataset: str
    source: str
    sha256: str
    mask_sha256: str
    """SHA-256 of the source mask file, or ``""``."""
    pixel_checksum: str
    """SHA-256 of the stored pixels, row-major, little-endian, without padding."""
    mask_checksum: str
    pool: str
    block: int
    """Number of the block in the pool."""
    start: int
    """First pixel (or value of a pixel with three channels) in a flat block, first tile in a tiled one."""
    mask_block: int
    """-1 where there is no mask."""
    mask_start: int
    height: int
    width: int
    low: float
    high: float
    split: str
    specimen: str
    condition: str
    """The production batch."""
    alloy: str
    magnification: float
    um_per_pixel: float
    ingest: str
    """The options that the file was packed with as JSON, see ``options``; ``""`` where they are not recorded."""

    @property
    def has_mask(self) -> bool:
        return self.mask_block >= 0

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
            production_batch=self.condition,
            alloy=self.alloy,
            magnification=None if math.isnan(self.magnification) else self.magnification,
            um_per_pixel=None if math.isnan(self.um_per_pixel) else self.um_per_pixel,
            has_mask=self.has_mask,
            ingest=options_from_json(self.ingest),
        )


_CONTENT = (
    "id", "dataset", "sha256", "mask_sha256", "pixel_checksum", "mask_checksum", "pool", "height", "width", "low", "high",
    "split", "specimen", "condition", "alloy", "magnification", "um_per_pixel",
)  # fmt: skip
"""Fields of a row that are part of the fingerprint: not where an image is or how it was packed."""


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


def packed_tile(height: int, width: int) -> int:
    """Side of the tiles of an image in a tiled block."""
    return PACKED_TILES[0] if max(height, width) <= PACKED_TILES[0] else PACKED_TILES[1]


def tile_grid(height: int, width: int, side: int) -> tuple[int, int]:
    """Tiles of ``side`` pixels down and across an image of ``height`` x ``width`` pixels."""
    return -(-height // side), -(-width // side)


def tile_shape(channels: int, side: int) -> tuple[int, ...]:
    """Shape of one tile of a tiled block: (side, side) for one channel, (side, side, 3) for three."""
    return (side, side) if channels == 1 else (side, side, channels)


def stored_dtype(dtype: str) -> np.dtype[np.generic]:
    """The little-endian dtype of a pool."""
    return np.dtype(dtype).newbyteorder("<")


def fingerprint(rows: Iterable[Row], collections: Iterable[Collection]) -> str:
    """SHA-256 of the content of an archive: pixels, masks, ids and metadata.

    It does not depend on paths, machines, shards, compression, or the order and number of builds.
    """
    encode = json.JSONEncoder(sort_keys=True).encode
    digest = hashlib.sha256(f"{FORMAT} 1\n".encode())  # the version of this definition
    for collection in sorted(collections, key=lambda item: item.name):
        digest.update(encode(asdict(collection)).encode() + b"\n")
    for row in sorted(rows, key=lambda item: item.id):
        digest.update(encode({name: getattr(row, name) for name in _CONTENT}).encode() + b"\n")
    return digest.hexdigest()


def collections_to_json(collections: Sequence[Collection]) -> str:
    return json.dumps([asdict(item) for item in sorted(collections, key=lambda item: item.name)])


def collections_from_json(text: str) -> dict[str, Collection]:
    """The inverse of :func:`collections_to_json`; ValueError, TypeError or KeyError for any other text."""
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

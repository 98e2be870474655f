"""Opening one archive file: where its indexes and its pixels are. Images added later are a shard of their own in it.

HDF5 is used once, to find the datasets; the file is then closed. Records and pixels are read with ``pread``, so no HDF5
handle is open when a process forks, threads do not wait for HDF5's global lock, no file is locked, and a reader in
another process needs a few numbers, not the index.

Files are not trusted: links, external or virtual storage, unknown filters and an index that does not match the blocks
are refused before anything is read through them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pscl_hpc.archive.blocks import CHUNK_DTYPE, FlatBlock, Pool, TiledBlock
from pscl_hpc.archive.codecs import CODECS, codec_of
from pscl_hpc.archive.format import (
    FORMAT,
    MASK_POOL,
    PACKED_TILES,
    POOLS,
    VERSION,
    Collection,
    Row,
    collections_from_json,
    parse_pool,
    stored_dtype,
    tile_shape,
)
from pscl_hpc.archive.growing import Overlaid, read_through
from pscl_hpc.archive.index import NAMED, Index, parse_index
from pscl_hpc.archive.verify import verify
from pscl_hpc.errors import UserError

ADDED = "added"
"""Group with the images that were added to a file later: one group each time, in the form of a file."""
_TRIES = 5
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the one that was opened, with or without images that were added since."""

    size: int
    """Of the archive, in bytes."""
    state: tuple[int, int]
    """(size of the file, modification time in ns) when it was opened."""
    indexes: tuple[tuple[int, int], ...]
    """(offset, bytes) of the index of each shard in the file."""
    digest: bytes
    """SHA-256 of the indexes, which hold the checksums of the pixels and where they are."""


@dataclass(frozen=True)
class Shard:
    """Images of an archive file with their index: those it was made with, or those that were added at one time."""

    path: Path
    index: Index
    collections: dict[str, Collection]
    pools: dict[str, Pool]
    fingerprint: str
    """Of all images in this file, as recorded by the writer; ``archive check`` compares it."""
    stamp: Stamp
    """Of the file."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, read now."""
        return tuple(self.index.rows(PositionedFile(self.path, self.stamp)))


class PositionedFile:
    """Reads (offset, size) -> bytes from one file.

    Args:
        path: The file.
        stamp: Of the file when it was opened before; None at the first time.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None) -> None:
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise UserError(f"{path} can no longer be opened ({error.strerror})") from error
        self._descriptor = self._file.fileno()
        if stamp is not None and self.state() != stamp.state and not self._has_grown(stamp):
            raise UserError(f"{path} was replaced while it was being read; start the command again")

    def __call__(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:  # a signal or a network file system may shorten a read
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                raise ValueError(f"the file ends {size - len(data)} bytes early")
            data += more
        return data

    def state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def digest(self, places: Sequence[tuple[int, int]]) -> bytes:
        """SHA-256 of some pieces of the file."""
        digest = hashlib.sha256()
        for offset, size in places:
            for first in range(0, size, _BLOCK):
                digest.update(self(offset + first, min(_BLOCK, size - first)))
        return digest.digest()

    def _has_grown(self, stamp: Stamp) -> bool:
        return self.state()[0] >= stamp.size and self.digest(stamp.indexes) == stamp.digest

    def through_journal(self) -> tuple[Overlaid | None, int]:
        return read_through(self._file)


def open_shards(path: Path) -> tuple[Shard, ...]:
    """Find and verify the indexes of an archive file; UserError when it is missing or damaged.

    The first shard has the images that the file was made with, the others what was appended to it.
    """
    if not path.is_file():
        raise UserError(f"no archive at {path}; make one with 'pscl-hpc archive build SRC... --out {path}'")
    for last in [False] * (_TRIES - 1) + [True]:
        file = PositionedFile(path)
        state = file.state()
        try:
            shards = _open(path, file, state)
        except Exception as error:
            if not last and _changed(path, state):
                continue
            # Not for lack of memory or of a module: the file may be sound.
            if isinstance(error, UserError | MemoryError | ImportError):
                raise
            reason = str(error).split("\n")[0]
            if "signature not found" in reason:
                raise UserError(
                    f"{path} is not an archive; make one of images with 'pscl-hpc archive build'"
                ) from None
            raise UserError(
                f"{path} cannot be read as an archive ({reason}); restore it from a backup or build it again"
            ) from error
        if not _changed(path, state):
            return shards
    raise UserError(f"{path} changes while it is opened; start the command again")


def _changed(path: Path, state: tuple[int, int]) -> bool:
    """Whether the file at ``path`` was replaced or added to since."""
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) != state


def _open(path: Path, file: PositionedFile, state: tuple[int, int]) -> tuple[Shard, ...]:
    overlaid, size = file.through_journal()
    with h5py.File(overlaid or path, "r", **({} if overlaid else {"locking": False})) as root:
        _check_format(root, path)
        groups: list[h5py.Group] = [root]
        if ADDED in root:
            added = _group(root, ADDED)
            groups += [_group(added, str(number)) for number in range(len(added))]
        parsed = [_parse(group, size) for group in groups]
        fingerprint = str(root.attrs["fingerprint"])
    places = tuple((index.offset, len(index) * index.dtype.itemsize) for index, *_ in parsed)
    stamp = Stamp(size, state, places, file.digest(places))
    for index, collections, pools in parsed:
        verify(index, collections, pools, file)
    return tuple(Shard(path, *parts, fingerprint, stamp) for parts in parsed)


def _check_format(file: h5py.File, path: Path) -> None:
    if str(file.attrs.get("format", "")) != FORMAT:
        raise UserError(f"{path} is an HDF5 file but not an archive; make one with 'pscl-hpc archive build'")
    version = int(file.attrs.get("version", 0))
    if version != VERSION:
        raise UserError(
            f"{path} has archive version {version} but this program reads version {VERSION}; "
            f"build it again or use the program version that wrote it"
        )


def _parse(group: h5py.Group, size: int) -> tuple[Index, dict[str, Collection], dict[str, Pool]]:
    """One shard in a file of ``size`` bytes."""
    tiles, names = _group(group, "tiles"), _group(group, "names")
    pools = {name: _pool(tiles, name, size) for name in tiles}
    images = _dataset(group, "images")
    tables = {column: _dataset(names, column) for column in NAMED}
    index = parse_index(images, tables, images.id.get_offset(), size)
    return index, collections_from_json(str(_dataset(group, "collections").asstr()[()])), pools


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    found = _hard(parent, name)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{name} is not a group")
    return found


def _dataset(parent: h5py.Group, name: str) -> h5py.Dataset:
    found = _hard(parent, name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{name} is not a dataset")
    if found.external or found.is_virtual:
        raise ValueError(f"{name} stores its data outside the file")
    return found


def _hard(parent: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    link = parent.get(name, getlink=True)
    if link is None:
        raise ValueError(f"{name} is missing")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is a link, which archives do not have")
    return parent[name]


def _pool(tiles: h5py.Group, name: str, size: int) -> Pool:
    if name not in POOLS and name != MASK_POOL:
        raise ValueError(f"unknown tile pool {name!r}")
    group = _group(tiles, name)
    text, channels = parse_pool(name)
    dtype = stored_dtype(text)
    blocks: list[FlatBlock | TiledBlock] = []
    codec = CODECS["none"]
    for number in range(sum(not key.endswith("-chunks") for key in group)):
        dataset = _dataset(group, str(number))
        if dataset.dtype != dtype:
            raise ValueError(f"block {number} of pool {name} has the wrong type")
        if dataset.ndim == 1 and dataset.chunks is None:
            blocks.append(_flat(dataset, size))
        else:
            codec = codec_of(dataset)
            blocks.append(_tiled(dataset, _dataset(group, f"{number}-chunks"), channels, size))
    return Pool(dtype, channels, codec, tuple(blocks))


def _flat(dataset: h5py.Dataset, size: int) -> FlatBlock:
    offset = dataset.id.get_offset()
    if offset is None or offset + dataset.nbytes > size:
        raise ValueError(f"{dataset.name} is not in one piece in the file")
    return FlatBlock(offset, dataset.shape[0])


def _tiled(dataset: h5py.Dataset, table: h5py.Dataset, channels: int, size: int) -> TiledBlock:
    side = dataset.shape[1] if dataset.ndim > 1 else 0
    tile = tile_shape(channels, side)
    if side not in PACKED_TILES or dataset.shape[1:] != tile or dataset.chunks != (1, *tile):
        raise ValueError(f"{dataset.name} has the wrong shape")
    count, offset = dataset.shape[0], table.id.get_offset()
    if table.dtype != CHUNK_DTYPE or table.shape != (count,):
        raise ValueError(f"{table.name} has {table.shape} of {count} tiles")
    if count and (offset is None or offset + table.nbytes > size):
        raise ValueError(f"{table.name} is not in one piece in the file")
    chunks = table[()]
    limit = 2 * int(np.prod(tile)) * dataset.dtype.itemsize
    if (chunks["size"] > limit).any() or (chunks["offset"] > size - np.minimum(chunks["size"], size)).any():
        raise ValueError(f"a tile of {dataset.name} is too large or outside the file")
    return TiledBlock(side, offset or 0, count, int(chunks["size"].sum(dtype=np.int64)))

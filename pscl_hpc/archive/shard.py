"""Opening one archive file: where its index and its pixels are.

HDF5 is used once, to find the datasets; the file is then closed. Records and pixels are read with ``pread``, so no HDF5
handle is open when a process forks, threads do not wait for HDF5's global lock, no file is locked, and a reader in
another process needs a few numbers, not the index.

Files are not trusted: links, external or virtual storage, unknown filters and an index that does not match the blocks
are refused before anything is read through them.
"""

from __future__ import annotations

import os
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
from pscl_hpc.archive.index import NAMED, Index, parse_index
from pscl_hpc.archive.verify import verify
from pscl_hpc.errors import UserError


@dataclass(frozen=True)
class Shard:
    """One archive file."""

    path: Path
    index: Index
    collections: dict[str, Collection]
    pools: dict[str, Pool]
    fingerprint: str
    """Of the images in this file, as recorded by the writer; ``archive check`` compares it."""
    stamp: tuple[int, int]
    """(size, modification time in ns), to notice a file that was replaced while it is read."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, read now."""
        return tuple(self.index.rows(PositionedFile(self.path, self.stamp)))


class PositionedFile:
    """Reads (offset, size) -> bytes from one file."""

    def __init__(self, path: Path, stamp: tuple[int, int]) -> None:
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise UserError(f"{path} can no longer be opened ({error.strerror})") from error
        self._descriptor = self._file.fileno()
        if stamp_of(os.fstat(self._descriptor)) != stamp:
            raise UserError(f"{path} was replaced while it was being read; start the command again")

    def __call__(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:  # a signal or a network file system may shorten a read
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                raise ValueError(f"the file ends {size - len(data)} bytes early")
            data += more
        return data


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def open_shard(path: Path) -> Shard:
    """Find and verify the index of an archive file; UserError when it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"no archive at {path}; make one with 'pscl-hpc archive build SRC... --out {path}'")
    try:
        stamp = stamp_of(path.stat())
        with h5py.File(path, "r", locking=False) as file:
            shard = _parse(file, path, stamp)
        verify(shard.index, shard.collections, shard.pools, PositionedFile(path, stamp))
        return shard
    except UserError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path} cannot be read as an archive ({reason}); restore it from a backup or build it again"
        ) from error


def _parse(file: h5py.File, path: Path, stamp: tuple[int, int]) -> Shard:
    if str(file.attrs.get("format", "")) != FORMAT:
        raise UserError(f"{path} is an HDF5 file but not an archive; make one with 'pscl-hpc archive build'")
    version = int(file.attrs.get("version", 0))
    if version != VERSION:
        raise UserError(
            f"{path} has archive version {version} but this program reads version {VERSION}; "
            f"build it again or use the program version that wrote it"
        )
    size = stamp[0]
    tiles, names = _group(file, "tiles"), _group(file, "names")
    pools = {name: _pool(tiles, name, size) for name in tiles}
    images = _dataset(file, "images")
    tables = {column: _dataset(names, column) for column in NAMED}
    index = parse_index(images, tables, images.id.get_offset(), size)
    collections = collections_from_json(str(_dataset(file, "collections").asstr()[()]))
    return Shard(path, index, collections, pools, str(file.attrs["fingerprint"]), stamp)


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

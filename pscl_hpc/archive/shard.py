"""Opening one archive file: its index and the position of each tile.

HDF5 is used once, to read the index and the offset of every chunk; the file is then closed. Pixels are read with
``pread`` at those offsets, so no HDF5 handle is open when a process forks, threads do not wait for HDF5's global lock,
and no file is locked.

Files are not trusted: links, external or virtual storage, unknown filters and an index that does not match the tiles
are refused before anything is read through them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.codecs import Codec, codec_of
from pscl_hpc.archive.format import (
    COLUMN_TYPES,
    FORMAT,
    MASK_POOL,
    OPTIONAL_COLUMNS,
    POOLS,
    TILE,
    VERSION,
    Collection,
    Row,
    Window,
    collections_from_json,
    parse_pool,
    stored_dtype,
    tile_grid,
    tile_shape,
)
from pscl_hpc.archive.options import MAX_SIDE, options_from_json
from pscl_hpc.errors import UserError

ReadAt = Callable[[int, int], bytes]
"""(offset in the file, number of bytes) -> the bytes."""


@dataclass(frozen=True)
class TilePool:
    """The positions of the tiles of one dataset in the file."""

    dtype: np.dtype[np.generic]
    channels: int
    codec: Codec
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    filter_masks: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.offsets)

    def read(
        self, read_at: ReadAt, first_tile: int, height: int, width: int, window: Window
    ) -> npt.NDArray[Any]:
        """(h, w, channels) pixels of a window inside an image of ``height`` x ``width``."""
        top, left, rows, columns = window
        _, across = tile_grid(height, width)
        out = np.empty((rows, columns, self.channels), self.dtype)
        for down in range(top // TILE, (top + rows - 1) // TILE + 1):
            y0 = max(top, down * TILE)
            y1 = min(top + rows, (down + 1) * TILE)
            for right in range(left // TILE, (left + columns - 1) // TILE + 1):
                x0 = max(left, right * TILE)
                x1 = min(left + columns, (right + 1) * TILE)
                band = self._band(
                    read_at, first_tile + down * across + right, y0 - down * TILE, y1 - down * TILE
                )
                out[y0 - top : y1 - top, x0 - left : x1 - left] = band[
                    :, x0 - right * TILE : x1 - right * TILE
                ]
        return out

    def _band(self, read_at: ReadAt, tile: int, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows ``start`` to ``stop`` of one tile; only these are read if the tile is not compressed."""
        row_bytes = TILE * self.channels * self.dtype.itemsize
        offset, size = int(self.offsets[tile]), int(self.sizes[tile])
        filter_mask = int(self.filter_masks[tile])
        if size == TILE * row_bytes and (filter_mask or not self.codec.filters):
            data = read_at(offset + start * row_bytes, (stop - start) * row_bytes)
            return np.frombuffer(data, self.dtype).reshape(stop - start, TILE, self.channels)
        data = self.codec.decode(read_at(offset, size), filter_mask, TILE * row_bytes, self.dtype.itemsize)
        return np.frombuffer(data, self.dtype).reshape(TILE, TILE, self.channels)[start:stop]

    def chunk(self, read_at: ReadAt, tile: int) -> tuple[int, bytes]:
        """Filter mask and stored bytes of one tile, to copy it without decoding."""
        return int(self.filter_masks[tile]), read_at(int(self.offsets[tile]), int(self.sizes[tile]))


@dataclass(frozen=True)
class Shard:
    """The index of one archive file."""

    path: Path
    rows: tuple[Row, ...]
    collections: dict[str, Collection]
    pools: dict[str, TilePool]
    stamp: tuple[int, int]
    """(size, modification time in ns), to notice a file that was replaced while it is read."""


class PositionedFile:
    """Reads (offset, size) -> bytes from one shard."""

    def __init__(self, shard: Shard) -> None:
        try:
            self._file = shard.path.open("rb", buffering=0)
        except OSError as error:
            raise UserError(f"{shard.path} can no longer be opened ({error.strerror})") from error
        self._descriptor = self._file.fileno()
        if stamp_of(os.fstat(self._descriptor)) != shard.stamp:
            raise UserError(f"{shard.path} was replaced while it was being read; start the command again")

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
    """Read and verify the index of an archive file; UserError when it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"no archive at {path}; make one with 'pscl-hpc archive build SRC... --out {path}'")
    try:
        stamp = stamp_of(path.stat())
        with h5py.File(path, "r", locking=False) as file:
            return _parse(file, path, stamp)
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
    collections = collections_from_json(str(_dataset(file, "collections").asstr()[()]))
    tiles = _group(file, "tiles")
    pools = {name: _pool(tiles, name) for name in tiles}
    rows = _rows(_group(file, "images"), limit=sum(len(pool) for pool in pools.values()))
    _verify(rows, collections, pools)
    return Shard(path, rows, collections, pools, stamp)


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


def _pool(tiles: h5py.Group, name: str) -> TilePool:
    if name not in POOLS and name != MASK_POOL:
        raise ValueError(f"unknown tile pool {name!r}")
    dataset = _dataset(tiles, name)
    dtype, channels = parse_pool(name)
    tile = tile_shape(channels)
    if dataset.dtype != stored_dtype(dtype) or dataset.shape[1:] != tile or dataset.chunks != (1, *tile):
        raise ValueError(f"tile pool {name} has the wrong shape or type")
    stored: list[tuple[int, int, int, int]] = []
    dataset.id.chunk_iter(
        lambda chunk: stored.append((chunk.chunk_offset[0], chunk.byte_offset, chunk.size, chunk.filter_mask))
    )
    # HDF5 would read a tile that was never stored as zeros.
    if len(stored) != dataset.shape[0]:
        raise ValueError(f"tile pool {name} has {len(stored)} of {dataset.shape[0]} tiles")
    table = np.array(sorted(stored), np.int64).reshape(-1, 4)
    if (table[:, 2] > 2 * int(np.prod(tile)) * dataset.dtype.itemsize).any():
        raise ValueError(f"a tile of pool {name} is too large")
    return TilePool(
        dtype=np.dtype(dtype).newbyteorder("<"),
        channels=channels,
        codec=codec_of(dataset),
        offsets=table[:, 1].copy(),
        sizes=table[:, 2].copy(),
        filter_masks=table[:, 3].astype(np.uint32),
    )


def _rows(images: h5py.Group, limit: int) -> tuple[Row, ...]:
    columns: dict[str, list[Any]] = {}
    for name, kind in COLUMN_TYPES.items():
        if name in OPTIONAL_COLUMNS and images.get(name, getlink=True) is None:
            columns[name] = [""] * len(columns["id"])
            continue
        dataset = _dataset(images, name)
        if dataset.ndim != 1 or dataset.shape[0] > limit:
            raise ValueError(f"index column {name} has the shape {dataset.shape} for {limit} tiles")
        if kind == "str":
            columns[name] = dataset.asstr()[()].tolist()
        elif dataset.dtype.kind == {"int": "i", "float": "f"}[kind]:
            columns[name] = dataset[()].tolist()
        else:
            raise ValueError(f"index column {name} has type {dataset.dtype}")
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("the index columns differ in length")
    return tuple(Row(*values) for values in zip(*columns.values(), strict=True))


def _verify(rows: tuple[Row, ...], collections: dict[str, Collection], pools: dict[str, TilePool]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen or not row.id.startswith(f"{row.dataset}/"):
            raise ValueError(f"image id {row.id!r} appears twice or does not begin with {row.dataset!r}")
        seen.add(row.id)
        if row.dataset not in collections:
            raise ValueError(f"the collection of {row.id} is not in the file")
        if row.pool not in POOLS or row.pool not in pools:
            raise ValueError(f"the tile pool {row.pool!r} of {row.id} is not in the file")
        if not (1 <= row.height <= MAX_SIDE and 1 <= row.width <= MAX_SIDE):
            raise ValueError(f"{row.id} has the size {row.height} x {row.width}")
        if not 0 <= row.first_tile <= len(pools[row.pool]) - row.tiles:
            raise ValueError(f"the tiles of {row.id} are not in the file")
        masks = len(pools[MASK_POOL]) if MASK_POOL in pools else 0
        if row.mask_first_tile != -1 and not 0 <= row.mask_first_tile <= masks - row.tiles:
            raise ValueError(f"the mask of {row.id} is not in the file")
        try:
            options_from_json(row.ingest)
        except ValueError as error:
            raise ValueError(f"{row.id}: {error}") from error

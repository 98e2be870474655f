"""Appending the pixels of images to the blocks of a pool."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from pscl_hpc.archive.blocks import CHUNK_DTYPE, FlatBlock, Pool, chunks
from pscl_hpc.archive.codecs import Codec, create_dataset
from pscl_hpc.archive.format import TILE, Pixels, packed_tile, parse_pool, stored_dtype, tile_grid, tile_shape
from pscl_hpc.archive.index import ReadAt
from pscl_hpc.archive.write_errors import write_errors

BLOCK_BYTES = 1 << 24
"""Flat blocks are gathered in memory up to this size; a larger image has a block of its own."""

Place = tuple[int, int]
"""Block, and first value or tile in it."""


class PoolWriter(Protocol):
    """Appends images to one pool."""

    def append(self, strips: Iterable[Pixels], height: int, width: int) -> tuple[Place, str]:
        """Store strips of 256 rows, (rows, width, channels) each.

        Returns the place and the SHA-256 of the pixels. After an exception nothing was stored.
        """
        ...

    def copy(self, pool: Pool, read_at: ReadAt, place: Place, height: int, width: int) -> Place:
        """Append an image of another pool of the same type."""
        ...

    def truncate(self, place: Place) -> None:
        """Remove the image at ``place``, which is the last one."""
        ...

    def finish(self) -> None:
        """Write what is still in memory."""
        ...


def pool_writer(tiles: h5py.Group, name: str, codec: Codec, path: Path) -> PoolWriter:
    """A writer of the pool ``name`` in ``/tiles`` of the file that becomes ``path``; it raises WriteError."""
    group = tiles.create_group(name)
    dtype, channels = parse_pool(name)
    kind = stored_dtype(dtype)
    return (
        _Packed(group, kind, channels, codec, path) if codec.filters else _Flat(group, kind, channels, path)
    )


def _checked(
    strips: Iterable[Pixels], height: int, width: int, channels: int, dtype: np.dtype[Any]
) -> Iterator[Pixels]:
    """Contiguous strips of the stored type; ValueError if their shapes do not make up the image."""
    rest = height
    for strip in strips:
        expected = (min(TILE, rest), width, channels)
        if strip.shape != expected or expected[0] == 0:
            raise ValueError(f"a strip has the shape {strip.shape}, not {expected}")
        rest -= expected[0]
        yield np.ascontiguousarray(strip, dtype)
    if rest:
        raise ValueError(f"{rest} of {height} rows are missing")


def _stored_strips(pool: Pool, read_at: ReadAt, place: Place, height: int, width: int) -> Iterator[Pixels]:
    """The strips of an image of another pool, as :meth:`PoolWriter.append` takes them."""
    for top in range(0, height, TILE):
        yield pool.read(read_at, *place, height, width, (top, 0, min(TILE, height - top), width))


class _Flat:
    """Uncompressed pixels."""

    def __init__(self, group: h5py.Group, dtype: np.dtype[Any], channels: int, path: Path) -> None:
        self._path = path
        self._group = group
        self._dtype = dtype
        self._channels = channels
        self._number = 0
        self._values = bytearray()
        """The pixels of block ``_number``, which is not in the file yet."""

    def append(self, strips: Iterable[Pixels], height: int, width: int) -> tuple[Place, str]:
        digest = hashlib.sha256()
        count = height * width * self._channels
        place = self._reserve(count)
        alone = self._alone(count)
        done = 0
        try:
            for strip in _checked(strips, height, width, self._channels, self._dtype):
                digest.update(strip.data)
                if width <= TILE:
                    data = strip.reshape(-1)
                else:
                    parts = [strip[:, left : left + TILE].reshape(-1) for left in range(0, width, TILE)]
                    data = np.concatenate(parts)
                if alone is None:
                    self._values += data.data
                else:
                    self._put(alone, done, data)
                    done += data.size
        except BaseException:
            self.truncate(place)
            raise
        self._number += alone is not None
        return place, digest.hexdigest()

    def copy(self, pool: Pool, read_at: ReadAt, place: Place, height: int, width: int) -> Place:
        found = pool.blocks[place[0]]
        if not isinstance(found, FlatBlock):
            return self.append(_stored_strips(pool, read_at, place, height, width), height, width)[0]
        size = self._dtype.itemsize
        count = height * width * self._channels
        own, alone = self._reserve(count), self._alone(count)
        step = BLOCK_BYTES // size
        for first in range(0, count, step):
            number = min(step, count - first)
            data = read_at(found.offset + (place[1] + first) * size, number * size)
            if alone is None:
                self._values += data
            else:
                self._put(alone, first, np.frombuffer(data, self._dtype))
        self._number += alone is not None
        return own

    def _reserve(self, count: int) -> Place:
        """The place of an image with ``count`` values."""
        size = self._dtype.itemsize
        if self._values and len(self._values) + count * size > BLOCK_BYTES:
            self.finish()
        return self._number, len(self._values) // size

    def _alone(self, count: int) -> h5py.Dataset | None:
        """The block of an image that is not gathered in memory."""
        if count * self._dtype.itemsize <= BLOCK_BYTES:
            return None
        return self._create(count)

    def _create(self, count: int) -> h5py.Dataset:
        with write_errors(self._path):
            return self._group.create_dataset(str(self._number), (count,), self._dtype, track_times=False)

    def _put(self, block: h5py.Dataset, first: int, values: Pixels) -> None:
        with write_errors(self._path):
            block[first : first + len(values)] = values

    def truncate(self, place: Place) -> None:
        block, start = place
        if block == self._number and str(block) not in self._group:
            del self._values[start * self._dtype.itemsize :]
            return
        # In the file already: a block begins anew, and what was in the old one after this place is not used.
        for number in range(block + (start > 0), self._number + 1):
            if str(number) in self._group:
                del self._group[str(number)]
        self._values.clear()
        self._number = block + (start > 0)

    def finish(self) -> None:
        if self._values:
            values = np.frombuffer(self._values, self._dtype)
            self._put(self._create(len(values)), 0, values)
            self._values = bytearray()
            self._number += 1


class _Packed:
    """Compressed tiles, as raw chunks; one block for small images and one for others."""

    def __init__(
        self, group: h5py.Group, dtype: np.dtype[Any], channels: int, codec: Codec, path: Path
    ) -> None:
        self._path = path
        self._group = group
        self._dtype = dtype
        self._channels = channels
        self._codec = codec
        self._sides: list[int] = []
        self._datasets: list[h5py.Dataset] = []
        self._counts: list[int] = []
        self._capacities: list[int] = []

    def append(self, strips: Iterable[Pixels], height: int, width: int) -> tuple[Place, str]:
        side = packed_tile(height, width)
        block, start = self._block(side)
        digest = hashlib.sha256()
        try:
            for strip in _checked(strips, height, width, self._channels, self._dtype):
                digest.update(strip.data)
                for top in range(0, len(strip), side):
                    for left in range(0, width, side):
                        part = strip[top : top + side, left : left + side]
                        tile = np.zeros((side, side, self._channels), self._dtype)
                        tile[: part.shape[0], : part.shape[1]] = part
                        self._put(block, *self._codec.encode(tile))
        except BaseException:
            self._counts[block] = start
            raise
        return (block, start), digest.hexdigest()

    def copy(self, pool: Pool, read_at: ReadAt, place: Place, height: int, width: int) -> Place:
        found = pool.blocks[place[0]]
        if isinstance(found, FlatBlock) or pool.codec != self._codec:
            return self.append(_stored_strips(pool, read_at, place, height, width), height, width)[0]
        block, start = self._block(found.side)
        down, across = tile_grid(height, width, found.side)
        for filter_mask, data in chunks(read_at, found, place[1], down * across):
            self._put(block, filter_mask, data)
        return block, start

    def _block(self, side: int) -> Place:
        if side not in self._sides:
            shape = (0, *tile_shape(self._channels, side))
            number = str(len(self._sides))
            with write_errors(self._path):
                self._datasets.append(create_dataset(self._group, number, shape, self._dtype, self._codec))
            self._sides.append(side)
            self._counts.append(0)
            self._capacities.append(0)
        block = self._sides.index(side)
        return block, self._counts[block]

    def _put(self, block: int, filter_mask: int, data: bytes) -> None:
        dataset, count = self._datasets[block], self._counts[block]
        with write_errors(self._path):
            if count >= self._capacities[block]:
                self._capacities[block] = max(64, 2 * count)
                dataset.resize(self._capacities[block], axis=0)
            dataset.id.write_direct_chunk((count,) + (0,) * (dataset.ndim - 1), data, filter_mask)
        self._counts[block] += 1

    def truncate(self, place: Place) -> None:
        self._counts[place[0]] = place[1]

    def finish(self) -> None:
        for number, (dataset, count) in enumerate(zip(self._datasets, self._counts, strict=True)):
            dataset.resize(count, axis=0)
            table = np.zeros(count, CHUNK_DTYPE)

            def put(chunk: Any, table: Any = table) -> None:
                table[chunk.chunk_offset[0]] = chunk.byte_offset, chunk.size, chunk.filter_mask

            dataset.id.chunk_iter(put)
            self._group.create_dataset(f"{number}-chunks", data=table)

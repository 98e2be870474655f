"""Reading pixels from the blocks of a shard, at known positions of the file and without HDF5."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.codecs import Codec
from pscl_hpc.archive.format import TILE, Window, tile_grid
from pscl_hpc.archive.index import ReadAt

CHUNK_DTYPE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("filter_mask", "<u4")])
"""Where a tile of a tiled block is in the file; the dataset ``/tiles/<pool>/<block>-chunks``."""
_CHUNK = struct.Struct("<QII")


@dataclass(frozen=True)
class FlatBlock:
    """Uncompressed pixels of many images.

    An image of height h and width w has h x w x channels values: its tiles in row-major order, each in row-major order.
    """

    offset: int
    """In the file, in bytes."""
    count: int
    """Values."""


@dataclass(frozen=True)
class TiledBlock:
    """Compressed square tiles, padded with zeros at the right and lower edges of an image."""

    side: int
    chunks: int
    """Position in the file of the table with :data:`CHUNK_DTYPE` records."""
    count: int
    stored_bytes: int


@dataclass(frozen=True)
class Pool:
    """The blocks of one type of pixels."""

    dtype: np.dtype[np.generic]
    channels: int
    codec: Codec
    blocks: tuple[FlatBlock | TiledBlock, ...]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all blocks in the file."""
        return sum(
            block.count * self.dtype.itemsize if isinstance(block, FlatBlock) else block.stored_bytes
            for block in self.blocks
        )

    def read(
        self, read_at: ReadAt, block: int, start: int, height: int, width: int, window: Window
    ) -> npt.NDArray[Any]:
        """(h, w, channels) pixels of a window inside an image of ``height`` x ``width``."""
        found = self.blocks[block]
        if isinstance(found, FlatBlock):
            return self._read_flat(read_at, found, start, height, width, window)
        return self._read_tiled(read_at, found, start, height, width, window)

    def _read_flat(
        self, read_at: ReadAt, block: FlatBlock, start: int, height: int, width: int, window: Window
    ) -> npt.NDArray[Any]:
        top, left, rows, columns = window
        bottom, right = top + rows, left + columns
        size, channels = self.dtype.itemsize, self.channels
        pixel = size * channels
        base = block.offset + start * size
        parts = []
        for y in range(top // TILE * TILE, bottom, TILE):
            tall = min(TILE, height - y)
            first, last = max(top - y, 0), min(bottom - y, tall)
            row = []
            for x in range(left // TILE * TILE, right, TILE):
                wide = min(TILE, width - x)
                place = base + (y * width + tall * x + first * wide) * pixel
                data = read_at(place, (last - first) * wide * pixel)
                tile = np.frombuffer(data, self.dtype).reshape(last - first, wide, channels)
                row.append(tile[:, max(left - x, 0) : right - x])
            parts.append(row)
        if len(parts) == len(parts[0]) == 1:
            return parts[0][0].copy()
        return np.concatenate([np.concatenate(row, 1) if len(row) > 1 else row[0] for row in parts])

    def _read_tiled(
        self, read_at: ReadAt, block: TiledBlock, start: int, height: int, width: int, window: Window
    ) -> npt.NDArray[Any]:
        top, left, rows, columns = window
        side = block.side
        _, across = tile_grid(height, width, side)
        out = np.empty((rows, columns, self.channels), self.dtype)
        first, last = left // side, (left + columns - 1) // side
        for down in range(top // side, (top + rows - 1) // side + 1):
            y0, y1 = max(top, down * side), min(top + rows, (down + 1) * side)
            tiles = self._tiles(read_at, block, start + down * across + first, last - first + 1)
            for right, tile in enumerate(tiles, first):
                x0, x1 = max(left, right * side), min(left + columns, (right + 1) * side)
                out[y0 - top : y1 - top, x0 - left : x1 - left] = tile[
                    y0 - down * side : y1 - down * side, x0 - right * side : x1 - right * side
                ]
        return out

    def _tiles(
        self, read_at: ReadAt, block: TiledBlock, first: int, count: int
    ) -> Iterator[npt.NDArray[Any]]:
        side, size = block.side, self.dtype.itemsize
        for filter_mask, data in chunks(read_at, block, first, count):
            raw = self.codec.decode(data, filter_mask, side * side * self.channels * size, size)
            yield np.frombuffer(raw, self.dtype).reshape(side, side, self.channels)


def chunks(read_at: ReadAt, block: TiledBlock, first: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Filter mask and stored bytes of consecutive tiles."""
    for offset, size, filter_mask in _CHUNK.iter_unpack(
        read_at(block.chunks + first * _CHUNK.size, count * _CHUNK.size)
    ):
        yield filter_mask, read_at(offset, size)

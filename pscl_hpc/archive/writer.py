"""Writing one archive file: tiles as raw chunks, the index at the end, an atomic rename last."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Required, Self, TypedDict, Unpack

import h5py
import numpy as np

from pscl_hpc.archive.codecs import AUTO, codec_for, create_dataset
from pscl_hpc.archive.format import (
    CHANNELS,
    COLUMN_TYPES,
    DTYPES,
    FORMAT,
    MASK_POOL,
    TILE,
    VERSION,
    Collection,
    Pixels,
    Row,
    check_mask,
    collections_to_json,
    parse_pool,
    pool_name,
    stored_dtype,
    tile_grid,
    tile_shape,
)
from pscl_hpc.archive.intensity import RangeEstimator
from pscl_hpc.archive.options import IngestOptions, options_to_json
from pscl_hpc.archive.shard import ReadAt, Shard, TilePool
from pscl_hpc.errors import UserError
from pscl_hpc.files import replacing

_COLUMN_DTYPES: dict[str, Any] = {
    "str": h5py.string_dtype(),
    "int": np.dtype("<i8"),
    "float": np.dtype("<f8"),
}


class WriteError(UserError):
    """An archive cannot be written; ``reason`` is what the operating system reported."""

    def __init__(self, path: Path, reason: str, fix: str = "fix that, or write to another place") -> None:
        super().__init__(f"{path} cannot be written ({reason}); {fix}")
        self.reason = reason


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise :class:`WriteError` for errors of the operating system while ``path`` is written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # HDF5 hides the error number in a long message, and raises a RuntimeError when a file is closed.
        if number := re.search(r"errno = (\d+)", str(error)):
            reason = os.strerror(int(number[1]))
        elif isinstance(error, OSError):
            reason = error.strerror or str(error)
        else:
            raise
        raise WriteError(path, reason) from error


class ImageFields(TypedDict, total=False):
    """What is stored beside the pixels of an image."""

    id: Required[str]
    """``"<dataset>/<stem>"``, unique. Readers sort by it, so zero-pad numbers."""
    dataset: Required[str]
    """Name of one of the file's collections."""
    split: str
    specimen: str
    production_batch: str
    alloy: str
    magnification: float | None
    um_per_pixel: float | None
    source: str
    sha256: str
    mask_sha256: str
    intensity: tuple[float, float] | None
    """(low, high) mapped to 0..1; None means 0..255 for uint8 and percentiles otherwise."""
    ingest: IngestOptions | None
    """The options by which a file became these pixels; recorded only."""


class ShardWriter:
    """Writes one archive file, which appears at ``path`` when the block ends without an exception.

    Use as a context manager. After an exception an older file at ``path`` is unchanged.

    Args:
        path: the file to make; an existing one is replaced.
        collections: every dataset that images will name.
        compression: ``"auto"`` (per dtype, any h5py reads it) or a name in ``codecs.CODECS``.
        percentiles: the intensity range of uint16 and float images for which none is given.

    Raises:
        WriteError: (a UserError) the disk is full or not writable; on entering, adding or leaving.
    """

    def __init__(
        self,
        path: str | Path,
        collections: Sequence[Collection],
        compression: str = AUTO,
        *,
        percentiles: tuple[float, float] = (0.5, 99.5),
    ) -> None:
        codec_for(compression, "uint8", is_mask=False)
        self.path = Path(path)
        self._collections = {item.name: item for item in collections}
        self._compression = compression
        self._percentiles = percentiles
        self._rows: list[Row] = []
        self._ids: set[str] = set()
        self.remarks: dict[str, str] = {}
        """Image id -> why its intensity range is not that of the percentiles."""
        self._pools: dict[str, _PoolWriter] = {}
        self._block = self._open()

    def __enter__(self) -> Self:
        self._tiles = self._block.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._block.__exit__(kind, error, trace)

    @contextmanager
    def _open(self) -> Iterator[h5py.Group]:
        """The group of the tiles of a new file; the file is completed and renamed when the block ends."""
        raised: BaseException | None = None
        try:
            with write_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.path) as temporary, h5py.File(temporary, "w", locking=False) as file:
                    try:
                        yield file.create_group("tiles")
                    except BaseException as error:
                        raised = error
                        raise
                    for pool in self._pools.values():
                        pool.trim()
                    write_index(file, self._rows, list(self._collections.values()))
        except WriteError:
            if raised is None:  # an exception of the block came first and is raised instead
                raise

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(self._rows)

    def add(self, image: Pixels, *, mask: Pixels | None = None, **fields: Unpack[ImageFields]) -> None:
        """Append one image.

        Args:
            image: (h, w), (h, w, 1) or (h, w, 3), uint8, uint16 or float32.
            mask: (h, w) class indices of the collection, 255 where not annotated.
            fields: see :class:`ImageFields`; ``id`` and ``dataset`` are required.

        Raises:
            ValueError: an argument does not fit the format; nothing was added.
        """
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim != 3:
            raise ValueError(f"{fields['id']}: an image has shape (h, w) or (h, w, c), not {image.shape}")
        height, width, channels = image.shape
        strips = (image[top : top + TILE] for top in range(0, height, TILE))
        dtype = image.dtype.newbyteorder("=").name
        self.add_strips(strips, shape=(height, width, channels), dtype=dtype, mask=mask, **fields)

    def add_strips(
        self,
        strips: Iterable[Pixels],
        *,
        shape: tuple[int, int, int],
        dtype: str,
        mask: Pixels | None = None,
        **fields: Unpack[ImageFields],
    ) -> None:
        """As :meth:`add`, for an image of ``shape`` (h, w, channels) that is given as strips of 256 rows.

        Only one strip is in memory at a time, so an image may be larger than the memory of the machine. After an
        exception from ``strips`` nothing was added.
        """
        height, width, channels = shape
        name, dataset = fields["id"], fields["dataset"]
        if dtype not in DTYPES or channels not in CHANNELS or height < 1 or width < 1:
            raise ValueError(f"{name}: cannot store {height} x {width} x {channels} pixels of {dtype}")
        if not name.startswith(f"{dataset}/") or len(name) == len(dataset) + 1:
            raise ValueError(f"{name}: an id must be '<dataset>/<stem>', here '{dataset}/...'")
        if name in self._ids:
            raise ValueError(f"{name}: this id was already added")
        if dataset not in self._collections:
            raise ValueError(f"{name}: there is no collection {dataset!r}")
        if mask is not None:
            check_mask(mask, height, width, self._collections[dataset])
        pool = self._pool(pool_name(dtype, channels))
        estimator = RangeEstimator(dtype, height, width, self._percentiles)
        first_tile = pool.count
        try:
            checksum = pool.append(_measured(strips, estimator), height, width)
        except BaseException:
            pool.count = first_tile
            raise
        mask_first, mask_checksum = -1, ""
        if mask is not None:
            masks = self._pool(MASK_POOL)
            mask_first = masks.count
            plane = mask.astype(np.uint8, copy=False)[:, :, None]
            mask_checksum = masks.append((plane[y : y + TILE] for y in range(0, height, TILE)), height, width)
        low, high = fields.get("intensity") or estimator.range()
        if estimator.remark:
            self.remarks[name] = estimator.remark
        ingest = fields.get("ingest")
        self._ids.add(name)
        self._rows.append(
            Row(
                id=name,
                dataset=dataset,
                source=fields.get("source", ""),
                sha256=fields.get("sha256", ""),
                mask_sha256=fields.get("mask_sha256", ""),
                pixel_checksum=checksum,
                mask_checksum=mask_checksum,
                pool=pool_name(dtype, channels),
                first_tile=first_tile,
                mask_first_tile=mask_first,
                height=height,
                width=width,
                low=float(low),
                high=float(high),
                split=fields.get("split", ""),
                specimen=fields.get("specimen", ""),
                condition=fields.get("production_batch", ""),
                alloy=fields.get("alloy", ""),
                magnification=_or_nan(fields.get("magnification")),
                um_per_pixel=_or_nan(fields.get("um_per_pixel")),
                ingest=options_to_json(ingest) if ingest is not None else "",
            )
        )

    def truncate(self, count: int) -> None:
        """Remove all images after the first ``count``."""
        for row in reversed(self._rows[count:]):
            self._ids.remove(row.id)
            self.remarks.pop(row.id, None)
            self._pools[row.pool].count = row.first_tile
            if row.mask_first_tile >= 0:
                self._pools[MASK_POOL].count = row.mask_first_tile
        del self._rows[count:]

    def copy(self, row: Row, shard: Shard, read_at: ReadAt) -> None:
        """Append an image of another shard; tiles with the same compression are copied as they are."""
        if row.id in self._ids:
            raise ValueError(f"{row.id}: this id was already added")
        first = self._pool(row.pool).copy(shard.pools[row.pool], read_at, row.first_tile, row.tiles)
        mask_first = -1
        if row.mask_first_tile >= 0:
            masks = shard.pools[MASK_POOL]
            mask_first = self._pool(MASK_POOL).copy(masks, read_at, row.mask_first_tile, row.tiles)
        self._ids.add(row.id)
        self._rows.append(replace(row, first_tile=first, mask_first_tile=mask_first))

    def _pool(self, name: str) -> _PoolWriter:
        if name not in self._pools:
            with write_errors(self.path):
                self._pools[name] = _PoolWriter(self._tiles, name, self._compression, self.path)
        return self._pools[name]


class _PoolWriter:
    """Appends tiles to one dataset, as raw chunks."""

    def __init__(self, group: h5py.Group, name: str, compression: str, path: Path) -> None:
        self._path = path
        dtype, channels = parse_pool(name)
        self._dtype = stored_dtype(dtype)
        self._tile = tile_shape(channels)
        self._channels = channels
        self._codec = codec_for(compression, dtype, is_mask=name == MASK_POOL)
        self._dataset = create_dataset(group, name, (0, *self._tile), self._dtype, self._codec)
        self._capacity = 0
        self.count = 0
        """Tiles in use; lower it to remove the last ones."""

    def append(self, strips: Iterable[Pixels], height: int, width: int) -> str:
        """Store strips of 256 rows, (rows, width, channels) each; returns the SHA-256 of the pixels."""
        down, across = tile_grid(height, width)
        self._reserve(self.count + down * across)
        digest = hashlib.sha256()
        rest = height
        for strip in strips:
            rows = min(TILE, rest)
            if strip.shape != (rows, width, self._channels) or rows == 0:
                expected = (rows, width, self._channels)
                raise ValueError(f"a strip has the shape {strip.shape}, not {expected}")
            rest -= rows
            strip = np.ascontiguousarray(strip, self._dtype)
            digest.update(strip.data)
            for left in range(0, width, TILE):
                part = strip[:, left : left + TILE]
                tile = np.zeros((TILE, TILE, self._channels), self._dtype)
                tile[: part.shape[0], : part.shape[1]] = part
                self._put_chunk(*self._codec.encode(tile))
        if rest:
            raise ValueError(f"{rest} of {height} rows are missing")
        return digest.hexdigest()

    def copy(self, pool: TilePool, read_at: ReadAt, first: int, tiles: int) -> int:
        """Append tiles of another pool of the same type; returns the index of the first."""
        self._reserve(self.count + tiles)
        start = self.count
        for tile in range(first, first + tiles):
            filter_mask, data = pool.chunk(read_at, tile)
            if pool.codec != self._codec:
                size = int(np.prod(self._tile)) * self._dtype.itemsize
                raw = pool.codec.decode(data, filter_mask, size, self._dtype.itemsize)
                filter_mask, data = self._codec.encode(np.frombuffer(raw, self._dtype))
            self._put_chunk(filter_mask, data)
        return start

    def _put_chunk(self, filter_mask: int, data: bytes) -> None:
        place = (self.count,) + (0,) * len(self._tile)
        with write_errors(self._path):
            self._dataset.id.write_direct_chunk(place, data, filter_mask)
        self.count += 1

    def _reserve(self, count: int) -> None:
        if count > self._capacity:
            self._capacity = max(count, 2 * self._capacity)
            with write_errors(self._path):
                self._dataset.resize(self._capacity, axis=0)

    def trim(self) -> None:
        self._dataset.resize(self.count, axis=0)


def write_index(file: h5py.File, rows: Sequence[Row], collections: Sequence[Collection]) -> None:
    """Write the index columns, the collections and the format attributes of a file."""
    images = file.create_group("images")
    for name, kind in COLUMN_TYPES.items():
        values = [getattr(row, name) for row in rows]
        images.create_dataset(name, (len(values),), dtype=_COLUMN_DTYPES[kind], data=values)
    file.create_dataset("collections", data=collections_to_json(collections), dtype=h5py.string_dtype())
    file.attrs["format"] = FORMAT
    file.attrs["version"] = VERSION


def _measured(strips: Iterable[Pixels], estimator: RangeEstimator) -> Iterator[Pixels]:
    for strip in strips:
        estimator.add(strip)
        yield strip


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)

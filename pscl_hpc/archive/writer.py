"""Writing images to an archive file: pixels, the index at the end; a new file appears by an atomic rename."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Required, Self, TypedDict, Unpack

import h5py
import numpy as np

from pscl_hpc.archive.codecs import AUTO, codec_for
from pscl_hpc.archive.format import (
    CHANNELS,
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
    fingerprint,
    parse_pool,
    pool_name,
)
from pscl_hpc.archive.growing import growing
from pscl_hpc.archive.index import ReadAt, encode_digest, write_index
from pscl_hpc.archive.intensity import RangeEstimator
from pscl_hpc.archive.options import IngestOptions, options_to_json
from pscl_hpc.archive.pool_writer import PoolWriter, pool_writer
from pscl_hpc.archive.shard import ADDED, Shard
from pscl_hpc.archive.write_errors import WriteError, write_errors
from pscl_hpc.files import replacing


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
        added_to: the fingerprint of the archive at ``path`` and the new images together; these are added to that file,
            instead of a new one.

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
        added_to: str | None = None,
    ) -> None:
        codec_for(compression, "uint8", is_mask=False)
        self.path = Path(path)
        self._collections = {item.name: item for item in collections}
        self._compression = compression
        self._percentiles = percentiles
        self._added_to = added_to
        self._rows: list[Row] = []
        self._ids: set[str] = set()
        self.remarks: dict[str, str] = {}
        """Image id -> why its intensity range is not that of the percentiles."""
        self._pools: dict[str, PoolWriter] = {}
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
            with write_errors(self.path), self._file() as group:
                try:
                    yield group.create_group("tiles")
                except BaseException as error:
                    raised = error
                    raise
                for pool in self._pools.values():
                    pool.finish()
                write_index(group, self._rows)
                text = collections_to_json(list(self._collections.values()))
                group.create_dataset("collections", data=text, dtype=h5py.string_dtype())
        except WriteError:
            if raised is None:  # an exception of the block came first and is raised instead
                raise

    @contextmanager
    def _file(self) -> Iterator[h5py.Group]:
        """The group of the images in the file."""
        if self._added_to is not None:
            with growing(self.path) as file:
                added = file.require_group(ADDED)
                yield added.create_group(str(len(added)))
                file.attrs["fingerprint"] = self._added_to
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary, h5py.File(temporary, "w", locking=False) as file:
            yield file
            file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
            file.attrs["fingerprint"] = fingerprint(self._rows, self._collections.values())

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> Sequence[Row]:
        return self._rows

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
        for key in ("sha256", "mask_sha256"):
            encode_digest(str(fields.get(key, "")))
        if dataset not in self._collections:
            raise ValueError(f"{name}: there is no collection {dataset!r}")
        if mask is not None:
            check_mask(mask, height, width, self._collections[dataset])
        pool = self._pool(pool_name(dtype, channels))
        estimator = RangeEstimator(dtype, height, width, self._percentiles)
        (block, start), checksum = pool.append(_measured(strips, estimator), height, width)
        mask_block, mask_start, mask_checksum = -1, 0, ""
        if mask is not None:
            plane = mask.astype(np.uint8, copy=False)[:, :, None]
            planes = (plane[y : y + TILE] for y in range(0, height, TILE))
            (mask_block, mask_start), mask_checksum = self._pool(MASK_POOL).append(planes, height, width)
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
                block=block,
                start=start,
                mask_block=mask_block,
                mask_start=mask_start,
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
            self._pools[row.pool].truncate((row.block, row.start))
            if row.has_mask:
                self._pools[MASK_POOL].truncate((row.mask_block, row.mask_start))
        del self._rows[count:]

    def copy(self, row: Row, shard: Shard, read_at: ReadAt) -> None:
        """Append an image of another shard; tiles with the same compression are copied as they are."""
        if row.id in self._ids:
            raise ValueError(f"{row.id}: this id was already added")
        size = row.height, row.width
        place = self._pool(row.pool).copy(shard.pools[row.pool], read_at, (row.block, row.start), *size)
        mask_place = (-1, 0)
        if row.has_mask:
            own = row.mask_block, row.mask_start
            mask_place = self._pool(MASK_POOL).copy(shard.pools[MASK_POOL], read_at, own, *size)
        self._ids.add(row.id)
        self._rows.append(
            replace(row, block=place[0], start=place[1], mask_block=mask_place[0], mask_start=mask_place[1])
        )

    def _pool(self, name: str) -> PoolWriter:
        if name not in self._pools:
            codec = codec_for(self._compression, parse_pool(name)[0], is_mask=name == MASK_POOL)
            with write_errors(self.path):
                self._pools[name] = pool_writer(self._tiles, name, codec, self.path)
        return self._pools[name]


def _measured(strips: Iterable[Pixels], estimator: RangeEstimator) -> Iterator[Pixels]:
    for strip in strips:
        estimator.add(strip)
        yield strip


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)

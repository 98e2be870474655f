"""Reading an archive: random windows from any number of processes and threads, without file locks."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.format import (
    MANIFEST,
    MASK_POOL,
    Collection,
    ImageRecord,
    Row,
    Window,
    fingerprint,
    unite,
)
from pscl_hpc.archive.manifest import read_manifest
from pscl_hpc.archive.shard import PositionedFile, Shard, open_shard
from pscl_hpc.archive.staging import staged_path
from pscl_hpc.errors import UserError, did_you_mean

_OPEN_FILES = 64
_BAND = 1024
"""Rows of an image that are read at a time for its statistics."""
STANDARD_DEVIATION = np.float32(1 / 6)
"""Of a standardised image: three standard deviations on either side of the mean fit into 0..1."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def is_archive(path: str | Path) -> bool:
    """Whether a path is a file, or a folder of shards, that :class:`Archive` may open."""
    return Path(path).is_file() or (Path(path) / MANIFEST).is_file()


class Archive:
    """A read-only archive: one ``.h5`` file, or a folder of shards with ``manifest.json``.

    The index is read once, when the archive is opened, from the local copy where one was staged. Each process opens the
    files when it first reads pixels, so an instance can be pickled, forked and shared between threads.

    Attributes:
        records: all images, sorted by id over all shards; ``records[i].index == i``.
        collections: the datasets by name.
        fingerprint: SHA-256 of the content (pixels, masks, ids, metadata), independent of paths and shards.

    Raises:
        UserError: there is no archive at ``path``, or it is damaged.
    """

    path: Path
    records: tuple[ImageRecord, ...]
    collections: dict[str, Collection]
    fingerprint: str

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        home = staged_path(self.path)
        files = [home]
        if home.is_dir():
            files = [home / entry.file for entry in read_manifest(home)]
        self.shards = tuple(open_shard(file) for file in files)
        self.collections = merge_collections(self.shards)
        places = [(row, shard) for shard, found in enumerate(self.shards) for row in found.rows]
        places.sort(key=lambda place: place[0].id)
        self.rows: tuple[Row, ...] = tuple(row for row, _ in places)
        self._shard_of = tuple(shard for _, shard in places)
        for before, after in zip(self.rows, self.rows[1:], strict=False):
            if before.id == after.id:
                raise UserError(f"{self.path} has the image {after.id} in two shards; build it again")
        self.records = tuple(row.record(index) for index, row in enumerate(self.rows))
        self._by_id = {record.id: record for record in self.records}
        self._by_nfc = {normalize("NFC", record.id): record for record in self.records}
        self.fingerprint = fingerprint(self.rows, self.collections.values())
        self._files = _Files()
        self._statistics: dict[int, tuple[np.float32, np.float32]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _files=_Files())

    def close(self) -> None:
        """Close the open files; they are opened again when needed."""
        self._files = _Files()

    def find(self, image_id: str) -> ImageRecord:
        """The record of an image id, up to Unicode normalisation; UserError, with the nearest id, if there is none."""
        if image_id not in self._by_id:
            if same := self._by_nfc.get(normalize("NFC", image_id)):
                return same
            raise UserError(f"{self.path} has no image {image_id!r}{did_you_mean(image_id, self._by_id)}")
        return self._by_id[image_id]

    def select(
        self,
        *,
        datasets: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        has_mask: bool | None = None,
    ) -> list[ImageRecord]:
        """Records that match all given arguments, in archive order; UserError for an unknown dataset."""
        for name in datasets or ():
            if name not in self.collections:
                raise UserError(f"{self.path} has no dataset {name!r}{did_you_mean(name, self.collections)}")
        return [
            record
            for record in self.records
            if (datasets is None or record.dataset in datasets)
            and (splits is None or record.split in splits)
            and (has_mask is None or record.has_mask == has_mask)
        ]

    def check_names(
        self, *, splits: Iterable[str], specimens: Iterable[str] = (), key: str = "data.splits"
    ) -> None:
        """Check that configured splits and specimens exist in the archive, in any dataset.

        ``train`` and the empty split may be absent: configurations name them for archives with and without splits.

        Args:
            key: the configuration key of the splits.

        Raises:
            UserError: one does not exist; the message suggests the nearest.
        """
        known = {record.split for record in self.records}
        for name in splits:
            if name not in ("", "train", *known):
                raise UserError(
                    f"{key}: no image of {self.path} is in the splits ['{name}']"
                    f"{did_you_mean(name, sorted(known - {''}))}"
                )
        present = {record.specimen for record in self.records} - {""}
        for name in specimens:
            if name not in present:
                raise UserError(
                    f"data.exclude_specimens: {self.path} has no specimen '{name}'"
                    f"{did_you_mean(name, sorted(present)) if present else '; no image has a specimen'}"
                )

    def read_image(self, index: int, window: Window | None = None) -> npt.NDArray[Any]:
        """(h, w, channels) pixels in the stored dtype.

        Args:
            index: position in :attr:`records`.
            window: (y0, x0, height, width) in pixels; None is the whole image.

        Raises:
            ValueError: the window is empty or not inside the image.
            UserError: the file is damaged or was replaced since it was opened.
        """
        row = self._row(index)
        return self._read(index, row.pool, row.first_tile, window)

    def read_mask(self, index: int, window: Window | None = None) -> npt.NDArray[np.uint8]:
        """(h, w) class indices, 255 where not annotated; ValueError also for an image without a mask."""
        row = self._row(index)
        if row.mask_first_tile < 0:
            raise ValueError(f"{row.id} has no mask")
        return self._read(index, MASK_POOL, row.mask_first_tile, window)[:, :, 0]

    def read_unit(
        self,
        index: int,
        window: Window | None = None,
        *,
        channels: int = 1,
        standardise: bool = False,
    ) -> npt.NDArray[np.float32]:
        """(channels, h, w) float32 in 0..1: ``low`` becomes 0, ``high`` 1, values beyond are clipped, NaN becomes 0.

        Args:
            index: Of the image.
            window: The part to read; by default all of it.
            channels: 1 (colour is reduced to BT.601 luma) or 3 (grey is repeated).
            standardise: Shift and scale so that the WHOLE image, not the window, has a mean of 0.5 and a standard
                deviation of 1/6, and clip to 0..1.
        """
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        row = self._row(index)
        pixels = self.read_image(index, window).astype(np.float32)
        span = row.high - row.low
        if span > 0:
            with np.errstate(over="ignore"):  # of values that fill missing pixels
                pixels -= np.float32(row.low)
                pixels *= np.float32(1 / span)
            np.clip(pixels, 0, 1, out=pixels)
            if row.pool.startswith("float"):
                np.nan_to_num(pixels, copy=False, nan=0.0)
        else:
            pixels[...] = 0
        if channels == 1 and pixels.shape[2] == 3:
            pixels = pixels @ _LUMA[:, None]
        if channels == 3 and pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        if standardise:
            mean, deviation = self.statistics(index)
            pixels = np.clip(0.5 + (pixels - mean) * (STANDARD_DEVIATION / deviation), 0, 1, dtype=np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def statistics(self, index: int) -> tuple[np.float32, np.float32]:
        """Mean and standard deviation of an image's grey level in 0..1. An image of one level has deviation 1."""
        if index not in self._statistics:
            row = self._row(index)
            count, total, square = 0, 0.0, 0.0
            for top in range(0, row.height, _BAND):
                band = self.read_unit(index, (top, 0, min(_BAND, row.height - top), row.width)).astype(float)
                count, total, square = count + band.size, total + band.sum(), square + (band**2).sum()
            mean = total / count
            deviation = max(0.0, square / count - mean**2) ** 0.5
            self._statistics[index] = np.float32(mean), np.float32(deviation if deviation > 1e-4 else 1.0)
        return self._statistics[index]

    def _row(self, index: int) -> Row:
        if not 0 <= index < len(self.rows):
            raise ValueError(f"image index {index} is not in 0..{len(self.rows) - 1}")
        return self.rows[index]

    def _read(self, index: int, pool: str, first_tile: int, window: Window | None) -> npt.NDArray[Any]:
        row = self.rows[index]
        if window is None:
            window = (0, 0, row.height, row.width)
        top, left, height, width = window
        inside = min(top, left) >= 0 and top + height <= row.height and left + width <= row.width
        if not inside or min(height, width) < 1:
            raise ValueError(f"window {window} is not inside {row.id} of {row.height} x {row.width} pixels")
        shard = self.shards[self._shard_of[index]]
        reader = self._files.reader(shard)
        try:
            return shard.pools[pool].read(reader, first_tile, row.height, row.width, window)
        except ValueError as error:
            raise UserError(
                f"{shard.path} is damaged at {row.id} ({error}); restore it from a backup or build it again"
            ) from error


def merge_collections(shards: Sequence[Shard]) -> dict[str, Collection]:
    """The collections of all shards; UserError when two shards disagree about the classes of a collection."""
    merged: dict[str, Collection] = {}
    for shard in shards:
        for name, new in shard.collections.items():
            try:
                merged[name] = unite(merged.get(name, new), new)
            except ValueError as error:
                raise UserError(f"{shard.path} contradicts the shards before it: {error}") from error
    return dict(sorted(merged.items()))


class _Files:
    """Open files of the current process, least recently used closed first.

    They are opened again after a fork, because the lock may be held by a thread that the child process does not have.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, PositionedFile] = OrderedDict()

    def reader(self, shard: Shard) -> PositionedFile:
        if os.getpid() != self._process:
            self._reset()
        with self._lock:
            file = self._open.pop(shard.path, None) or PositionedFile(shard)
            self._open[shard.path] = file
            if len(self._open) > _OPEN_FILES:
                # Not closed here, because another thread may be reading it; dropping the last reference closes it.
                self._open.popitem(last=False)
        return file

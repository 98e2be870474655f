"""Reading an archive: random windows from any number of processes and threads, without file locks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.catalogue import Catalogue, Files, Lazy, positions
from pscl_hpc.archive.format import MANIFEST, MASK_POOL, Collection, ImageRecord, Row, Window, unite
from pscl_hpc.archive.manifest import read_manifest
from pscl_hpc.archive.shard import Shard, open_shards
from pscl_hpc.archive.staging import staged_path
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.files import nfc
from pscl_hpc.grey import LUMA

_BAND = 1024
"""Rows of an image that are read at a time for its statistics."""
STANDARD_DEVIATION = np.float32(1 / 6)
"""Of a standardised image: three standard deviations on either side of the mean fit into 0..1."""
_LUMA = np.array(LUMA, np.float32)


def is_archive(path: str | Path) -> bool:
    """Whether a path is a file, or a folder of shards, that :class:`Archive` may open."""
    return Path(path).is_file() or (Path(path) / MANIFEST).is_file()


class Archive:
    """A read-only archive: one ``.h5`` file, or a folder of shards with ``manifest.json``.

    The index is verified once, when the archive is opened, from the local copy where one was staged; records are read
    from it when they are needed. Each process opens the files when it first reads, so an instance can be pickled, forked
    and shared between threads, and takes no memory per image.

    Attributes:
        records: all images, sorted by id over all shards; ``records[i].index == i``.
        collections: the datasets by name.
        rows: the index of the same images, as stored.
        fingerprint: SHA-256 of the content (pixels, masks, ids, metadata), independent of paths and shards, as recorded
            when it was built.

    Raises:
        UserError: there is no archive at ``path``, or it is damaged.
    """

    path: Path
    records: Sequence[ImageRecord]
    rows: Sequence[Row]
    collections: dict[str, Collection]
    fingerprint: str

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        home = staged_path(self.path)
        files = [home]
        if home.is_dir():
            manifest = read_manifest(home)
            files = [home / entry.file for entry in manifest.shards]
        shards = tuple(shard for file in files for shard in open_shards(file))
        self.collections = merge_collections(shards)
        try:
            self._catalogue = Catalogue(shards)
        except ValueError as error:
            raise UserError(f"{self.path} has the image {error} in two shards; build it again") from None
        self.fingerprint = manifest.fingerprint if home.is_dir() else shards[0].fingerprint
        self._begin()

    def _begin(self) -> None:
        everything = range(self._catalogue.count)
        self.shards = self._catalogue.shards
        self.rows = Lazy(self._catalogue.row, everything)
        self.records = Lazy(self._catalogue.record, everything)
        self._statistics: dict[int, tuple[np.float32, np.float32]] = {}

    def __len__(self) -> int:
        return self._catalogue.count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # A few numbers: readers in other processes find the records in the file.
        return {name: vars(self)[name] for name in ("path", "collections", "fingerprint", "_catalogue")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def close(self) -> None:
        """Close the open files; they are opened again when needed."""
        self._catalogue.files = Files()

    def all_rows(self) -> Iterator[Row]:
        """All rows in order; faster than :attr:`rows` one by one."""
        return self._catalogue.rows()

    def groups(self, *columns: str) -> list[tuple[Row, int]]:
        """The first row and the number of images of each combination of texts in some columns of the index."""
        return [(self.rows[first], count) for first, count in self._catalogue.groups(*columns)]

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column of the index as it is stored, for every image."""
        return self._catalogue.column(name)

    def coded(self, column: str) -> tuple[list[str], npt.NDArray[np.int32]]:
        """The texts of a column and, for every image, the number of its text; columns as in :meth:`values`."""
        return self._catalogue.named(column)

    def values(self, column: str, records: Sequence[ImageRecord] | None = None) -> list[str]:
        """The texts in a column of some records, by default of all, sorted: dataset, pool, split, specimen, condition,
        alloy or ingest."""
        names, codes = self._catalogue.named(column)
        if records is not None:
            codes = codes[positions(records)]
        return sorted(names[code] for code in np.unique(codes))

    def find(self, image_id: str) -> ImageRecord:
        """The record of an image id, up to Unicode normalisation; UserError, with the nearest id, if there is none."""
        if (index := self._catalogue.find(image_id)) >= 0:
            return self.records[index]
        ids = self._catalogue.ids()
        for index, name in enumerate(ids):
            if nfc(name) == nfc(image_id):
                return self.records[index]
        raise UserError(f"{self.path} has no image {image_id!r}{did_you_mean(image_id, ids)}")

    def has(self, image_id: str) -> bool:
        """Whether there is an image with exactly this id."""
        return self._catalogue.find(image_id) >= 0

    def select(
        self,
        *,
        datasets: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        has_mask: bool | None = None,
        without_specimens: Sequence[str] = (),
        without: Iterable[ImageRecord] = (),
    ) -> Sequence[ImageRecord]:
        """Records that match all given arguments, in archive order; UserError for an unknown dataset.

        ``without_specimens`` and ``without`` leave images out. The result is lazy: it holds positions, not records.
        """
        for name in datasets or ():
            if name not in self.collections:
                raise UserError(f"{self.path} has no dataset {name!r}{did_you_mean(name, self.collections)}")
        keep = np.ones(len(self), bool)
        for column, wanted in (("dataset", datasets), ("split", splits)):
            if wanted is not None:
                keep &= self._is_one_of(column, wanted)
        if without_specimens:
            keep &= ~self._is_one_of("specimen", [name for name in without_specimens if name])
        if has_mask is not None:
            keep &= (self._catalogue.column("mask_block") >= 0) == has_mask
        keep[[record.index for record in without]] = False
        return Lazy(self._catalogue.record, np.flatnonzero(keep).astype(np.int32))

    def _is_one_of(self, column: str, wanted: Sequence[str]) -> npt.NDArray[np.bool_]:
        names, codes = self._catalogue.named(column)
        chosen = np.array([name in wanted for name in names] or [False])
        return chosen[codes]

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
        known = set(self.values("split"))
        for name in splits:
            if name not in ("", "train", *known):
                raise UserError(
                    f"{key}: no image of {self.path} is in the splits ['{name}']"
                    f"{did_you_mean(name, sorted(known - {''}))}"
                )
        present = set(self.values("specimen")) - {""}
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
        row = self._catalogue.row(index)
        return self._read(index, row.pool, (row.block, row.start), window)

    def read_mask(self, index: int, window: Window | None = None) -> npt.NDArray[np.uint8]:
        """(h, w) class indices, 255 where not annotated; ValueError also for an image without a mask."""
        row = self._catalogue.row(index)
        if not row.has_mask:
            raise ValueError(f"{row.id} has no mask")
        return self._read(index, MASK_POOL, (row.mask_block, row.mask_start), window)[:, :, 0]

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
        row = self._catalogue.row(index)
        pixels = self.read_image(index, window).astype(np.float32)
        span = row.high - row.low
        if row.pool.startswith("uint8") and (row.low, row.high) == (0, 255):
            pixels *= np.float32(1 / 255)  # never above 1
        elif span > 0:
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
            row = self._catalogue.row(index)
            count, total, square = 0, 0.0, 0.0
            for top in range(0, row.height, _BAND):
                band = self.read_unit(index, (top, 0, min(_BAND, row.height - top), row.width)).astype(float)
                count, total, square = count + band.size, total + band.sum(), square + (band**2).sum()
            mean = total / count
            deviation = max(0.0, square / count - mean**2) ** 0.5
            self._statistics[index] = np.float32(mean), np.float32(deviation if deviation > 1e-4 else 1.0)
        return self._statistics[index]

    def _read(self, index: int, pool: str, place: tuple[int, int], window: Window | None) -> npt.NDArray[Any]:
        row, shard = self._catalogue.find_row(index)
        if window is None:
            window = (0, 0, row.height, row.width)
        top, left, height, width = window
        inside = min(top, left) >= 0 and top + height <= row.height and left + width <= row.width
        if not inside or min(height, width) < 1:
            raise ValueError(f"window {window} is not inside {row.id} of {row.height} x {row.width} pixels")
        reader = self._catalogue.files.reader(shard)
        try:
            return shard.pools[pool].read(reader, *place, row.height, row.width, window)
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

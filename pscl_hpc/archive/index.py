"""The index of a shard: one record of fixed width per image, sorted by id, read from the file when it is needed.

A reader keeps nothing per image in memory. Texts that many images share are numbers in the record and refer to a table;
a SHA-256 is 32 bytes, all 255 if it is unknown.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.format import Row

ReadAt = Callable[[int, int], bytes]
"""(offset in the file, number of bytes) -> the bytes."""

NAMED = ("dataset", "pool", "split", "specimen", "condition", "alloy", "ingest")
"""Columns with numbers of texts in ``/names/<column>``."""
_NUMBERS = {
    "block": "<i4", "start": "<i8", "mask_block": "<i4", "mask_start": "<i8", "height": "<i4", "width": "<i4",
    "low": "<f8", "high": "<f8", "magnification": "<f8", "um_per_pixel": "<f8",
}  # fmt: skip
_DIGESTS = ("sha256", "mask_sha256", "pixel_checksum", "mask_checksum")
_TEXTS = ("id", "source")
_COLUMNS = (*NAMED, *_NUMBERS, *_DIGESTS, *_TEXTS)
_UNKNOWN = b"\xff" * 32
_BLOCK = 1 << 14
"""Records that are read at a time."""


def record_dtype(id_bytes: int, source_bytes: int) -> np.dtype[np.void]:
    """The packed record; ids and sources are UTF-8, filled with zeros."""
    return np.dtype(
        [
            *((name, "<i4") for name in NAMED),
            *_NUMBERS.items(),
            *((name, "u1", (32,)) for name in _DIGESTS),
            ("id", f"S{id_bytes}"),
            ("source", f"S{source_bytes}"),
        ]
    )


def encode_text(text: str) -> bytes:
    # File names may have bytes that are not UTF-8; Python keeps them as surrogates.
    return text.encode("utf-8", "surrogateescape")


def decode_text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")


def encode_digest(text: str) -> bytes:
    """The 32 bytes of a SHA-256; ValueError for any other text but ``""``."""
    if not text:
        return _UNKNOWN
    data = bytes.fromhex(text)
    if len(data) != 32 or data == _UNKNOWN or data.hex() != text:
        raise ValueError(f"{text!r} is not a SHA-256 in lower-case hexadecimal digits")
    return data


@dataclass(frozen=True)
class Index:
    """Where the records of a shard are."""

    offset: int
    """Of the first record in the file, in bytes."""
    count: int
    dtype: np.dtype[np.void]
    names: Mapping[str, npt.NDArray[np.bytes_]]
    """Column in :data:`NAMED` -> its texts."""

    def __len__(self) -> int:
        return self.count

    def row(self, read_at: ReadAt, place: int) -> Row:
        size = self.dtype.itemsize
        return self._row(self._format.unpack(read_at(self.offset + place * size, size)))

    def rows(self, read_at: ReadAt) -> Iterator[Row]:
        """All rows in the order of their ids."""
        for part in self._parts(read_at):
            for values in self._format.iter_unpack(part):
                yield self._row(values)

    def id(self, read_at: ReadAt, place: int) -> bytes:
        width, offset = self.dtype["id"].itemsize, self.dtype.fields["id"][1]  # type: ignore[index]
        return read_at(self.offset + place * self.dtype.itemsize + offset, width).rstrip(b"\0")

    def columns(self, read_at: ReadAt, *names: str) -> tuple[npt.NDArray[Any], ...]:
        """Some columns of all records, as stored."""
        found: list[list[npt.NDArray[Any]]] = [[] for _ in names]
        for part in self._parts(read_at):
            records = np.frombuffer(part, self.dtype)
            for column, name in zip(found, names, strict=True):
                column.append(records[name].copy())
        empty = np.empty(0, self.dtype)
        return tuple(
            np.concatenate(column) if column else empty[name]
            for column, name in zip(found, names, strict=True)
        )

    def _parts(self, read_at: ReadAt) -> Iterator[bytes]:
        size = self.dtype.itemsize
        for first in range(0, self.count, _BLOCK):
            yield read_at(self.offset + first * size, min(_BLOCK, self.count - first) * size)

    @property
    def _format(self) -> struct.Struct:
        return _record_struct(self.dtype["id"].itemsize, self.dtype["source"].itemsize)

    def _row(self, values: tuple[Any, ...]) -> Row:
        fields = dict(zip(_COLUMNS, values, strict=True))
        for name in NAMED:
            fields[name] = decode_text(self.names[name][fields[name]])
        for name in _DIGESTS:
            fields[name] = "" if fields[name] == _UNKNOWN else fields[name].hex()
        for name in _TEXTS:
            fields[name] = decode_text(fields[name])
        return Row(**fields)


@lru_cache(64)
def _record_struct(id_bytes: int, source_bytes: int) -> struct.Struct:
    """:func:`record_dtype` for the ``struct`` module, which unpacks a single record faster than numpy."""
    return struct.Struct(f"<{'i' * len(NAMED)}iqiqiidddd{'32s' * len(_DIGESTS)}{id_bytes}s{source_bytes}s")


def write_index(file: h5py.Group, rows: Sequence[Row]) -> None:
    """Write ``/images`` and ``/names``; ``rows`` in any order."""
    ids = [encode_text(row.id) for row in rows]
    sources = [encode_text(row.source) for row in rows]
    dtype = record_dtype(max(map(len, ids), default=1), max(1, max(map(len, sources), default=1)))
    records = np.zeros(len(rows), dtype)
    names = file.create_group("names")
    for column in NAMED:
        texts = [getattr(row, column) for row in rows]
        table = {text: code for code, text in enumerate(sorted(set(texts)))}
        records[column] = [table[text] for text in texts]
        stored = [encode_text(text) for text in table]
        width = max(1, max(map(len, stored), default=1))
        names.create_dataset(column, data=np.array(stored, f"S{width}"))
    for column in _NUMBERS:
        records[column] = [getattr(row, column) for row in rows]
    for column in _DIGESTS:
        digests = b"".join(encode_digest(getattr(row, column)) for row in rows)
        records[column] = np.frombuffer(digests, np.uint8).reshape(len(rows), 32)
    records["id"], records["source"] = ids, sources
    file.create_dataset("images", data=records[np.argsort(records["id"], kind="stable")])


def parse_index(
    images: h5py.Dataset, tables: Mapping[str, h5py.Dataset], offset: int | None, size: int
) -> Index:
    """The index of an open file of ``size`` bytes; ValueError when it has another form."""
    dtype = images.dtype
    for name in _COLUMNS:
        if name not in (dtype.names or ()):
            raise ValueError(f"index column {name} is missing")
    if images.ndim != 1 or dtype != record_dtype(dtype["id"].itemsize, dtype["source"].itemsize):
        raise ValueError("the index columns have other types or another order")
    count = images.shape[0]
    if count and (offset is None or offset + count * dtype.itemsize > size):
        raise ValueError("the index is not in one piece in the file")
    names = {}
    for column, table in tables.items():
        if table.ndim != 1 or table.dtype.kind != "S" or table.nbytes > size:
            raise ValueError(f"the names of column {column} have the wrong shape or type")
        names[column] = table[()]
    return Index(offset or 0, count, dtype, names)

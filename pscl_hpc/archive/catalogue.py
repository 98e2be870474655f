"""All images of an archive in the order of their ids, over its shards; records are made when they are asked for."""

from __future__ import annotations

import heapq
import operator
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.format import ImageRecord, Row
from pscl_hpc.archive.index import decode_text, encode_text
from pscl_hpc.archive.shard import PositionedFile, Shard
from pscl_hpc.errors import UserError

_OPEN_FILES = 64
_RECENT = 1024
"""Rows that are kept, because a window needs its row several times."""
ItemT = TypeVar("ItemT")


class Lazy(Sequence[ItemT], Generic[ItemT]):
    """A read-only sequence whose items are made when they are asked for."""

    def __init__(self, make: Callable[[int], ItemT], places: npt.NDArray[np.int32] | range) -> None:
        self._make = make
        self.places = places
        """What ``make`` gets, by position."""

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> ItemT: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy[ItemT]: ...
    def __getitem__(self, index: int | slice) -> ItemT | Lazy[ItemT]:
        if isinstance(index, slice):
            return Lazy(self._make, self.places[index])
        return self._make(int(self.places[index]))

    def __iter__(self) -> Iterator[ItemT]:
        return (self._make(int(place)) for place in self.places)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]


def positions(records: Sequence[ImageRecord]) -> npt.NDArray[np.int64]:
    """The positions of records in their archive; of a lazy selection without making the records."""
    if isinstance(records, Lazy):
        return np.asarray(records.places, np.int64)
    return np.array([record.index for record in records], np.int64)


class Catalogue:
    """Finds rows by position, id and column.

    Args:
        shards: The open shards.
    """

    def __init__(self, shards: tuple[Shard, ...]) -> None:
        self.shards = shards
        self.count = sum(len(shard.index) for shard in shards)
        self._starts = [0, *accumulate(len(shard.index) for shard in shards)][:-1]
        """Position of the first image of each shard."""
        self._order = self._sorted()
        self._fresh()

    def _fresh(self) -> None:
        self.files = Files()
        self._rows: OrderedDict[int, tuple[Row, Shard]] = OrderedDict()
        self._columns: dict[str, tuple[list[str], npt.NDArray[np.int32]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("shards", "count", "_starts", "_order")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._fresh()

    def _sorted(self) -> npt.NDArray[np.int32] | None:
        """Position -> position in the shards one after another; None for a single shard, which is sorted.

        Raises:
            ValueError: an image is in two shards.
        """
        if len(self.shards) < 2:
            return None
        ids = np.concatenate(
            [shard.index.columns(PositionedFile(shard.path, shard.stamp), "id")[0] for shard in self.shards]
        )
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        if (same := np.flatnonzero(ids[1:] == ids[:-1])).size:
            raise ValueError(decode_text(ids[same[0]]))
        return order.astype(np.int32)

    def place(self, index: int) -> tuple[Shard, int]:
        """The shard of an image and its position there."""
        if not 0 <= index < self.count:
            raise ValueError(f"image index {index} is not in 0..{self.count - 1}")
        place = index if self._order is None else int(self._order[index])
        number = bisect_right(self._starts, place) - 1
        return self.shards[number], place - self._starts[number]

    def row(self, index: int) -> Row:
        return self.find_row(index)[0]

    def find_row(self, index: int) -> tuple[Row, Shard]:
        """The row of an image and the shard that has its pixels."""
        found = self._rows.get(index)
        if found is None:
            shard, place = self.place(index)
            try:
                found = shard.index.row(self.files.reader(shard), place), shard
            except ValueError as error:
                raise UserError(
                    f"{shard.path} is damaged in its index ({error}); restore it from a backup or build it again"
                ) from error
            self._rows[index] = found
            if len(self._rows) > _RECENT:
                self._rows.popitem(last=False)
        return found

    def record(self, index: int) -> ImageRecord:
        return self.row(index).record(index)

    def rows(self) -> Iterator[Row]:
        """All rows; faster than one by one."""
        shards = (shard.index.rows(self.files.reader(shard)) for shard in self.shards)
        yield from heapq.merge(*shards, key=lambda row: encode_text(row.id))

    def find(self, image_id: str) -> int:
        """The position of an image, or -1."""
        wanted = encode_text(image_id)
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            shard, place = self.place(middle)
            found = shard.index.id(self.files.reader(shard), place)
            if found == wanted:
                return middle
            low, high = (middle + 1, high) if found < wanted else (low, middle)
        return -1

    def ids(self) -> list[str]:
        """All ids, for messages."""
        return [row.id for row in self.rows()]

    def named(self, column: str) -> tuple[list[str], npt.NDArray[np.int32]]:
        """The texts of a column and, for every image, the number of its text."""
        if column not in self._columns:
            texts: dict[str, int] = {}
            parts = []
            for shard in self.shards:
                names = [
                    texts.setdefault(decode_text(name), len(texts)) for name in shard.index.names[column]
                ]
                (codes,) = shard.index.columns(self.files.reader(shard), column)
                parts.append(np.array(names or [0], np.int32)[codes])
            codes = np.concatenate(parts) if parts else np.empty(0, np.int32)
            self._columns[column] = list(texts), codes if self._order is None else codes[self._order]
        return self._columns[column]

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column as it is stored, for every image."""
        parts = [shard.index.columns(self.files.reader(shard), name)[0] for shard in self.shards]
        found = np.concatenate(parts) if parts else np.empty(0, np.int32)
        return found if self._order is None else found[self._order]

    def groups(self, *columns: str) -> list[tuple[int, int]]:
        """(first image, number of images) for each combination of texts in some columns, by first image."""
        codes = np.zeros(self.count, np.int64)
        for column in columns:
            names, values = self.named(column)
            codes = codes * max(1, len(names)) + values
        _, first, counts = np.unique(codes, return_index=True, return_counts=True)
        return sorted(zip(first.tolist(), counts.tolist(), strict=True))


class Files:
    """Open files of the current process, least recently used closed first.

    They are opened again after a fork, because the lock may be held by a thread that the child process does not have.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, PositionedFile] = OrderedDict()
        self._last: tuple[Path, PositionedFile] | None = None

    def reader(self, shard: Shard) -> PositionedFile:
        if os.getpid() != self._process:
            self._reset()
        last = self._last
        if last is not None and last[0] is shard.path:
            return last[1]
        with self._lock:
            file = self._open.pop(shard.path, None) or PositionedFile(shard.path, shard.stamp)
            self._open[shard.path] = file
            self._last = shard.path, file
            if len(self._open) > _OPEN_FILES:
                # Not closed here, because another thread may be reading it; dropping the last reference closes it.
                self._open.popitem(last=False)
        return file

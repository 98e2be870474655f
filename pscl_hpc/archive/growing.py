"""Adding to an archive file: what is in it stays in its place, so readers go on, and a crash leaves the old archive.

HDF5 appends new objects, but also changes a few bytes of the old ones: the list of groups and the end of the file. These
changes are held back while the new objects are written. They are then appended as a journal, which is valid once its
last bytes are on the disk, and only then written to their places. A reader that finds a journal reads through it; the
next addition completes what it finds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from pscl_hpc.errors import UserError

_PAGE = 4096
_CHANGE = struct.Struct("<QQ")
"""Offset and length of a change, before its bytes."""
_FOOTER = struct.Struct("<16sQ32s")
"""Mark, bytes of the journal before this, and their SHA-256."""
_MARK = b"pscl-hpc journal"
_END = {0: 40, 1: 44, 2: 28, 3: 28}
"""Version of the HDF5 superblock -> where it tells the end of the file."""
Changes = dict[int, bytearray]
"""Number of a page of the file -> its new bytes."""


class Overlaid(io.RawIOBase):
    """A file of which the part below ``limit`` is not written: changes of it are kept in ``changes``.

    The first error of writing is kept in ``error``, because HDF5 loses errors that it is not told in its own way.
    """

    def __init__(self, file: BinaryIO, limit: int, changes: Changes) -> None:
        self._descriptor = file.fileno()
        self._limit = limit
        self._place = 0
        self.changes = changes
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: os.fstat(self._descriptor).st_size}
        self._place = base[whence] + offset
        return self._place

    def truncate(self, size: int | None = None) -> int:
        size = self._place if size is None else size
        with self._keep_error():
            os.ftruncate(self._descriptor, max(size, self._limit))
        return size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = os.pread(self._descriptor, len(view), self._place)
        view[: len(data)] = data
        for page in _pages(self._place, self._place + len(data)):
            changed, start = self.changes.get(page, b""), page * _PAGE
            first = max(self._place, start)
            last = min(self._place + len(data), start + len(changed))
            if first < last:
                view[first - self._place : last - self._place] = changed[first - start : last - start]
        self._place += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        below = max(0, min(len(view), self._limit - self._place))
        for page in _pages(self._place, self._place + below):
            start = page * _PAGE
            if page not in self.changes:
                length = min(_PAGE, self._limit - start)
                self.changes[page] = bytearray(os.pread(self._descriptor, length, start))
            first = max(self._place, start)
            last = min(self._place + below, start + _PAGE)
            self.changes[page][first - start : last - start] = view[first - self._place : last - self._place]
        with self._keep_error():
            _write_at(self._descriptor, view[below:], self._place + below)
        self._place += len(view)
        return len(view)

    @contextlib.contextmanager
    def _keep_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


def _pages(start: int, end: int) -> range:
    return range(start // _PAGE, -(-end // _PAGE)) if end > start else range(0)


def _write_at(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def read_through(file: BinaryIO) -> tuple[Overlaid | None, int]:
    """What to read instead of ``file`` if a journal has not been written to its places, and the end of the archive.

    Bytes behind the end, of an addition that was interrupted, are not part of the archive.
    """
    size = os.fstat(file.fileno()).st_size
    changes = _journal(file, size)
    overlaid = Overlaid(file, size, changes) if changes else None
    header = bytearray(_PAGE)
    if overlaid is None:
        header[:] = os.pread(file.fileno(), _PAGE, 0).ljust(_PAGE, b"\0")
    else:
        overlaid.readinto(header)
        overlaid.seek(0)
    place = _END.get(header[8])
    end = size if place is None else struct.unpack_from("<Q", header, place)[0]
    return overlaid, min(size, end)


def _journal(file: BinaryIO, size: int) -> Changes:
    """The changes of a complete journal at the end of the file; empty if there is none."""
    footer = os.pread(file.fileno(), _FOOTER.size, max(0, size - _FOOTER.size))
    if not footer.startswith(_MARK):
        return {}
    _, length, digest = _FOOTER.unpack(footer)
    if length > size - _FOOTER.size:
        return {}
    data = os.pread(file.fileno(), length, size - _FOOTER.size - length)
    if hashlib.sha256(data).digest() != digest:
        return {}
    changes: Changes = {}
    place = 0
    while place + _CHANGE.size <= len(data):
        page, count = _CHANGE.unpack_from(data, place)
        place += _CHANGE.size
        changes[page] = bytearray(data[place : place + count])
        place += count
    return changes


@contextlib.contextmanager
def growing(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to which the block adds objects, all or none of them.

    Nothing in the file may be deleted or resized in the block, because readers may be using it.

    Raises:
        UserError: the file was written by another program in a form that cannot be extended.
        OSError, RuntimeError: the file cannot be written; it is unchanged.
    """
    with path.open("r+b", buffering=0) as file:
        overlaid, end = read_through(file)
        if overlaid is not None:
            _apply(file, overlaid.changes, end)
        if os.pread(file.fileno(), 9, 0)[8:] != b"\0":
            raise UserError(f"{path} was written by another program; build a new archive from the sources")
        committed = False
        try:
            os.ftruncate(file.fileno(), end)
            overlaid = Overlaid(file, end, {})
            with h5py.File(overlaid, "r+") as grown:
                yield grown
            if overlaid.error is not None:
                raise overlaid.error
            size = os.fstat(file.fileno()).st_size
            parts = [_CHANGE.pack(page, len(data)) + data for page, data in overlaid.changes.items()]
            journal = b"".join(parts)
            _write_at(file.fileno(), journal, size)
            os.fsync(file.fileno())  # before the footer, which says that everything else is there
            footer = _FOOTER.pack(_MARK, len(journal), hashlib.sha256(journal).digest())
            committed = True
            _write_at(file.fileno(), footer, size + len(journal))
            os.fsync(file.fileno())
        except BaseException:
            if not committed:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), end)
            if overlaid is not None and overlaid.error is not None:
                raise overlaid.error from None
            raise
        _apply(file, overlaid.changes, size)


def _apply(file: BinaryIO, changes: Changes, end: int) -> None:
    """Write the changes of a journal to their places, then remove it."""
    for page, data in changes.items():
        _write_at(file.fileno(), bytes(data), page * _PAGE)
    os.fsync(file.fileno())
    os.ftruncate(file.fileno(), end)
    os.fsync(file.fileno())

"""A copy of an archive on a node's own disk, made once per node, whatever number of ranks asks for it.

Copies lie in ``<folder>/pscl-hpc-<user>/<key>/``, where the key follows from the archive's path, size and time, so an
archive that was changed is copied anew. A copy is made under a lock and named only when every byte was read back and
compared; one that a crash tore is made again. Copies stay for the next job. Where there is no room, those that no
process uses are removed, the one used longest ago first.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import IO

from pscl_hpc.archive.format import MANIFEST
from pscl_hpc.archive.manifest import read_manifest
from pscl_hpc.errors import JobError, UserError

_BLOCK = 1 << 22
_LOOK_S = 0.02
_COPIES: dict[Path, Path] = {}
_HELD: list[IO[str]] = []
"""Locks by which this process says that it uses its copies."""


def staged_path(path: Path) -> Path:
    """The copy from which this process reads an archive: ``path`` itself where none was made."""
    return _COPIES.get(path.absolute(), path)


def stage_archive(path: Path, folder: Path) -> Path:
    """Copy an archive below ``folder``, or find the copy there, and read it from there from now on.

    Args:
        path: an ``.h5`` file or a folder of shards.
        folder: on a disk of this node alone.

    Returns:
        Where the copy is.

    Raises:
        UserError: no archive at ``path``, or no room for it.
        JobError: the copy does not read back as it was written.
    """
    source = path.absolute()
    if source in _COPIES:
        return _COPIES[source]
    files = _files_of(source)
    home = folder / f"pscl-hpc-{_user()}"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the archive cannot be staged there ({error.strerror}); change stage"
        ) from None
    key = _key(source, files)
    copy = home / key
    try:
        lock = (home / f"{key}.lock").open("a")
    except OSError as error:
        raise UserError(f"{home}: {source} cannot be staged ({error.strerror}); change stage") from None
    try:
        _wait_for_copy(lock, source, files, copy, home)
    except BaseException:
        lock.close()  # or whoever tries again in this process would wait for this very lock
        raise
    os.utime(lock.fileno())
    _HELD.append(lock)
    _COPIES[source] = copy / files[0].name if source.is_file() else copy
    return _COPIES[source]


def _wait_for_copy(lock: IO[str], source: Path, files: list[Path], copy: Path, home: Path) -> None:
    """Return when there is a copy, made here or by another rank, with the lock held shared."""
    # Held shared for as long as the copy is used; the first rank makes it alone, the others wait for that here.
    fcntl.flock(lock, fcntl.LOCK_SH)
    while not _is_whole(copy, files):
        fcntl.flock(lock, fcntl.LOCK_UN)
        # Never waited for: the rank that has made the copy since keeps the lock shared until its end.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_whole(copy, files):
                _make(source, files, copy, home)
            fcntl.flock(lock, fcntl.LOCK_UN)
        time.sleep(_LOOK_S)
        fcntl.flock(lock, fcntl.LOCK_SH)


def _files_of(source: Path) -> list[Path]:
    if source.is_dir():
        return [*(source / entry.file for entry in read_manifest(source)), source / MANIFEST]
    if not source.is_file():
        raise UserError(f"{source}: no such archive; check data.archive, or build it first")
    return [source]


def _key(source: Path, files: list[Path]) -> str:
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{source.stem[:40]}-{hashlib.sha256(json.dumps([str(source), facts]).encode()).hexdigest()[:16]}"


def _is_whole(copy: Path, files: list[Path]) -> bool:
    """The name is given last, so only sizes are looked at, against what a user may have done to the folder."""
    return all(
        (copy / file.name).is_file() and (copy / file.name).stat().st_size == file.stat().st_size
        for file in files
    )


def _make(source: Path, files: list[Path], copy: Path, home: Path) -> None:
    torn = copy.with_name(f"{copy.name}.torn")
    for left in (torn, copy):
        shutil.rmtree(left, ignore_errors=True)
    _make_room(home, sum(file.stat().st_size for file in files), copy.name)
    print(f"staging {source} to {copy}", file=sys.stderr, flush=True)
    try:
        _fill(torn, source, files)
        torn.rename(copy)
    except BaseException as error:
        # At once: what fills the disk here would be in the way of whoever makes room.
        shutil.rmtree(torn, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(
                f"{home}: {source} cannot be staged ({error.strerror or error}); change stage"
            ) from None
        raise


def _fill(torn: Path, source: Path, files: list[Path]) -> None:
    known = {entry.file: entry.sha256 for entry in read_manifest(source)} if source.is_dir() else {}
    torn.mkdir()
    for file in files:
        digest = _copy(file, torn / file.name)
        expected = known.get(file.name, digest)
        if digest != expected:
            raise UserError(
                f"{file} does not match its checksum in {MANIFEST}; restore it from a copy or build it again"
            )
        if _digest(torn / file.name) != digest:
            raise JobError(f"{torn / file.name}: reads back otherwise than it was written; look at that disk")


def _copy(source: Path, target: Path) -> str:
    """Copy a file to the disk itself and give its SHA-256."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_BLOCK):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
        if hasattr(os, "posix_fadvise"):
            # So that reading back reads the disk.
            os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_room(home: Path, needed: int, key: str) -> None:
    """Remove copies that no process uses until ``needed`` bytes are free."""
    locks = [lock for lock in home.glob("*.lock") if lock.stem != key]
    for lock in sorted(locks, key=lambda lock: lock.stat().st_mtime):
        if shutil.disk_usage(home).free >= needed:
            return
        with lock.open("a") as handle, contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in (home / lock.stem, home / f"{lock.stem}.torn"):
                shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(home).free
    if free < needed:
        raise UserError(
            f"{home}: the archive needs {needed / 1e9:.2f} GB there and {free / 1e9:.2f} GB are free; make room or "
            "leave stage out"
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # An id without a name, as in containers.
        return str(os.getuid())

"""A copy of an archive on a node's local disk, made once per node and shared by all its ranks.

Copies are in ``<folder>/pscl-hpc-<user>/<key>/``. The key depends on the archive's path, size and modification time, so
a changed archive is copied again. A copy is made under a lock, and renamed to its key when every byte was read back and
compared; one that a crash left incomplete is made again. Copies stay for the next job. When there is no room, copies
that no process uses are removed, the least recently used first.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from pscl_hpc.files import sha256_of, user_name

_BLOCK = 1 << 22
_POLL_S = 0.02
_COPIES: dict[Path, Path] = {}
_HELD: list[IO[str]] = []
"""Shared locks on the copies that this process uses."""


def staged_path(path: Path) -> Path:
    """The copy from which this process reads an archive; ``path`` itself if there is none."""
    return _COPIES.get(path.absolute(), path)


def stage_archive(path: Path, folder: Path) -> Path:
    """Make or find a copy of an archive below ``folder``; this process reads the archive from it from now on.

    Args:
        path: an ``.h5`` file or a folder of shards.
        folder: on a local disk of this node.

    Returns:
        The path of the copy.

    Raises:
        UserError: there is no archive at ``path``, or no room for it.
        JobError: the copy differs from the archive when it is read back.
    """
    source = path.absolute()
    if source in _COPIES:
        return _COPIES[source]
    files = _files_of(source)
    home = folder / f"pscl-hpc-{user_name()}"
    key = _key(source, files)
    copy = home / key
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (home / f"{key}.lock").open("a")
    except OSError as error:
        raise _cannot_stage(source, home, error) from None
    try:
        _wait_for_copy(lock, source, files, copy, home)
    except BaseException:
        lock.close()  # otherwise a second attempt of this process would wait for this lock
        raise
    os.utime(lock.fileno())
    _HELD.append(lock)
    _COPIES[source] = copy / files[0].name if source.is_file() else copy
    return _COPIES[source]


def _cannot_stage(source: Path, home: Path, error: OSError) -> UserError:
    return UserError(
        f"{source} cannot be staged in {home} ({error.strerror or error}); set 'stage' to another folder"
    )


def _wait_for_copy(lock: IO[str], source: Path, files: list[Path], copy: Path, home: Path) -> None:
    """Return when there is a copy, made here or by another rank, with the lock held shared."""
    # The lock is shared as long as the copy is used; one rank holds it exclusively to make the copy, others wait here.
    fcntl.flock(lock, fcntl.LOCK_SH)
    while not _is_complete(copy, files):
        fcntl.flock(lock, fcntl.LOCK_UN)
        # Not blocking: a rank that has made the copy in the meantime holds the lock shared until it ends.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_complete(copy, files):
                _make(source, files, copy, home)
            fcntl.flock(lock, fcntl.LOCK_UN)
        time.sleep(_POLL_S)
        fcntl.flock(lock, fcntl.LOCK_SH)


def _files_of(source: Path) -> list[Path]:
    if source.is_dir():
        return [*(source / entry.file for entry in read_manifest(source).shards), source / MANIFEST]
    if not source.is_file():
        raise UserError(f"{source}: archive not found; check data.archive, or build it first")
    return [source]


def _key(source: Path, files: list[Path]) -> str:
    facts = [(file.name, *_state(file)) for file in files]
    return f"{source.stem[:40]}-{hashlib.sha256(json.dumps([str(source), facts]).encode()).hexdigest()[:16]}"


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _is_complete(copy: Path, files: list[Path]) -> bool:
    """Whether the copy has all files; comparing sizes is enough because it was verified before it was renamed."""
    return all(
        (copy / file.name).is_file() and (copy / file.name).stat().st_size == file.stat().st_size
        for file in files
    )


def _make(source: Path, files: list[Path], copy: Path, home: Path) -> None:
    partial = copy.with_name(f"{copy.name}.partial")
    for left in (partial, copy):
        shutil.rmtree(left, ignore_errors=True)
    _make_room(home, sum(file.stat().st_size for file in files), copy.name)
    print(f"staging {source} to {copy}", file=sys.stderr, flush=True)
    try:
        _fill(partial, source, files)
        partial.rename(copy)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)  # now, because it may be what fills the disk
        if isinstance(error, OSError):
            raise _cannot_stage(source, home, error) from None
        raise


def _fill(partial: Path, source: Path, files: list[Path]) -> None:
    known = {entry.file: entry.sha256 for entry in read_manifest(source).shards} if source.is_dir() else {}
    partial.mkdir()
    for file in files:
        before = _state(file)
        digest = _copy(file, partial / file.name)
        if _state(file) != before:
            raise UserError(f"{file} was changed while it was copied; start the command again")
        if digest != known.get(file.name, digest):
            raise UserError(
                f"{file} does not match its checksum in {MANIFEST}; restore it from a backup or build it again"
            )
        if sha256_of(partial / file.name) != digest:
            raise JobError(f"{partial / file.name} differs from {file} when read back; check that disk")


def _copy(source: Path, target: Path) -> str:
    """Copy a file, sync it, and return its SHA-256."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_BLOCK):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
        if hasattr(os, "posix_fadvise"):
            # So that it is read back from the disk and not from memory.
            os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


def _make_room(home: Path, needed: int, key: str) -> None:
    """Remove copies that no process uses until ``needed`` bytes are free."""
    locks = [lock for lock in home.glob("*.lock") if lock.stem != key]
    for lock in sorted(locks, key=lambda lock: lock.stat().st_mtime):
        if shutil.disk_usage(home).free >= needed:
            return
        with lock.open("a") as handle, contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in (home / lock.stem, home / f"{lock.stem}.partial"):
                shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(home).free
    if free < needed:
        raise UserError(
            f"{home}: the archive needs {needed / 1e9:.2f} GB but {free / 1e9:.2f} GB are free; make room or "
            "remove 'stage'"
        )

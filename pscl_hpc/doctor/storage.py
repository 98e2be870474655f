"""The folder of the runs: writing, renaming, locking, free space."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pscl_hpc.doctor.findings import GIB, Finding

LOCK_FIX = "write runs to a file system with locks, or make sure that two processes never share a run folder"


def writing(folder: Path) -> Iterator[Finding]:
    """Whether files can be written, synced and renamed, as checkpoints and archives require."""
    kind = file_system(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
            path = Path(name) / "a"
            with path.open("wb") as handle:
                handle.write(b"x")
                os.fsync(handle.fileno())
            path.replace(Path(name) / "b")
    except OSError as error:
        yield Finding("problem", f"{folder} ({kind}): {error.strerror}", "choose a writable folder")
        return
    yield Finding("ok", f"{folder.resolve()} ({kind}): files can be written, synced and renamed")


def locking(folder: Path) -> Iterator[Finding]:
    """Whether a file can be locked only once, and whether HDF5 can lock."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
            yield _flock(Path(name) / "lock")
            yield from _hdf5_lock(Path(name) / "lock.h5")
    except OSError as error:
        yield Finding("note", f"cannot be tested in {folder}: {error.strerror}", LOCK_FIX)


def space(folder: Path) -> Iterator[Finding]:
    """Free space."""
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free in {folder.resolve()}"
    if free < GIB // 10:
        yield Finding("problem", text, "free space or choose another folder; a run needs at least 0.1 GiB")
    elif free < 5 * GIB:
        yield Finding("note", text, "checkpoints of large models will not fit; keep checkpoint.keep small")
    else:
        yield Finding("ok", text)


def file_system(folder: Path) -> str:
    """The type of the file system of ``folder``, or ``unknown type``."""
    best, kind = "", "unknown type"
    place = str(folder.resolve())
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return kind
    for line in lines:
        _, mount, name, *_ = line.split()
        # The mount table writes spaces as \040.
        mount = mount.replace("\\040", " ")
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, name
    return kind


def _flock(path: Path) -> Finding:
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Finding("note", f"not supported here: {error.strerror}", LOCK_FIX)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("ok", "a locked run folder keeps other writers out")
        return Finding(
            "note", "a file can be locked twice here, so locks do not protect a run folder", LOCK_FIX
        )


def _hdf5_lock(path: Path) -> Iterator[Finding]:
    import h5py

    try:
        with h5py.File(path, "w", locking=True) as handle:
            handle["x"] = 1
        with h5py.File(path, "r", locking=True) as handle:
            handle["x"][()]
    except (OSError, BlockingIOError) as error:
        yield Finding(
            "note",
            f"HDF5 cannot lock files here ({error}); archives are read without locks anyway",
            "set HDF5_USE_FILE_LOCKING=FALSE for other HDF5 programs",
        )

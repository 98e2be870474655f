"""The lock of a run folder, which excludes other processes on this machine."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO, Any

from pscl_hpc.errors import UserError
from pscl_hpc.runs.attempts import describe, newest_attempt, read_about
from pscl_hpc.runs.provenance import node_name, slurm_restart

LOCK_FILE = "run.lock"
_PATIENCE_S = 1.0


def take_lock(run: Path) -> IO[str]:
    """Take the lock of a run folder. It is held until the returned file is closed or the process ends.

    Raises:
        UserError: another process works there.
        OSError: the file cannot be written.
    """
    handle = (run / LOCK_FILE).open("a+")
    try:
        _lock(handle)
    except BlockingIOError:
        handle.seek(0)
        owner = handle.read().strip() or "another process"
        if not _orphaned(read_about(run, newest_attempt(run))):
            handle.close()
            raise UserError(
                f"{run}: in use by {owner}; wait for it or choose another folder with run=..."
            ) from None
    except OSError:
        pass  # A file system without locks, which `pscl-hpc doctor` reports.
    handle.truncate(0)
    handle.write(f"process {os.getpid()}\n")
    handle.flush()
    return handle


def is_locked(run: Path) -> bool:
    """Whether a process holds the lock of a run folder; False on a file system without locks."""
    try:
        with (run / LOCK_FILE).open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def lock_holder(run: Path) -> str:
    """The process that holds the lock of a run folder, for messages; empty when none does."""
    return describe(run, newest_attempt(run)) if is_locked(run) else ""


def _lock(handle: IO[str]) -> None:
    """Take the lock of a file.

    Raises:
        BlockingIOError: another process holds it, and longer than ``jobs status`` needs to look at it.
        OSError: the file system has no locks.
    """
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(0.02)


def _orphaned(about: dict[str, Any]) -> bool:
    """Whether the lock may belong to a task that Slurm has replaced: of this job before its requeue, or of another job
    on another node, which may have lost the network. An attempt in the same start of this job, or of another job on
    this node, is alive."""
    job, node = os.environ.get("SLURM_JOB_ID", ""), node_name()
    if not job or not about.get("slurm_job"):
        return False
    if about["slurm_job"] == job:
        return bool(about.get("slurm_restart", "0") != slurm_restart())
    return bool(about.get("node", node) != node)

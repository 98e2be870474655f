"""The lock of a run folder: one process at a time works there, as far as this machine can tell."""

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
    """Take the lock of a run folder. It is held until what is given back is closed, or the process ends.

    Raises:
        UserError: when another process works there.
        OSError: when the file cannot be written.
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
                f"{run}: is being written by {owner}; wait for it or choose another folder"
            ) from None
    except OSError:
        pass  # A file system without locks: `pscl-hpc doctor` says so.
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
    """The process that holds the lock of a run folder, in words; empty when nobody does."""
    return describe(run, newest_attempt(run)) if is_locked(run) else ""


def _lock(handle: IO[str]) -> None:
    """Take the lock of a file.

    Raises:
        BlockingIOError: when another process has it, for longer than a look at it takes (``jobs status``).
        OSError: on a file system without locks.
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
    """Whether a lock is held by a task that Slurm no longer counts: of this very job before its requeue, or of another
    job on a node that may have lost the network. In the same start of a job, or on this node under another job, an
    attempt is alive."""
    job, node = os.environ.get("SLURM_JOB_ID", ""), node_name()
    if not job or not about.get("slurm_job"):
        return False
    if about["slurm_job"] == job:
        return bool(about.get("slurm_restart", "0") != slurm_restart())
    return bool(about.get("node", node) != node)

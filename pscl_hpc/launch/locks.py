"""Who works in a run folder, whatever started it."""

from __future__ import annotations

import fcntl
from pathlib import Path

from pscl_hpc.runs.attempts import describe, newest_attempt
from pscl_hpc.runs.lock import LOCK_FILE


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

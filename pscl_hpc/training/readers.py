"""Processes that read batches ahead of the training."""

from __future__ import annotations

import signal
from multiprocessing import forkserver, resource_tracker
from typing import Any

_NOTICES = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What terminals, ``kill`` and Slurm send to all processes of a training, to stop it."""


def reader_options(workers: int) -> dict[str, Any]:
    """Options of a ``DataLoader`` for so many reading processes; 0 reads in this process."""
    if not workers:
        return {"num_workers": 0}
    _start_server()
    return {"num_workers": workers, "multiprocessing_context": "forkserver"}


def _start_server() -> None:
    """Start the process from which readers are forked, deaf to the notices, as they are then too.

    A notice would end a reader, and with it the training that it asks to save: the last steps need their images.
    Readers end with their parent.
    """
    # Started first: doing so unblocks some of the notices, up to Python 3.12.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICES)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

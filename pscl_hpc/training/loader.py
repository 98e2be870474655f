"""Reading batches ahead of the training, in other processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

BatchT = TypeVar("BatchT")

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Signals that terminals, ``kill`` and Slurm send to all processes of a training."""
_alive: tuple[Connection, Connection] | None = None
"""Both ends of a pipe to which nothing is written. Its second end is closed when this process ends, however it ends."""


def read_ahead(
    dataset: Dataset[BatchT], numbers: Sequence[int], *, workers: int, pin: bool
) -> Iterator[BatchT]:
    """The items ``numbers`` of ``dataset``, in order.

    Args:
        dataset: Batches by number.
        numbers: Which ones.
        workers: Reading processes; 0 reads in this process. They end with this process, even if it is killed.
        pin: Copy batches to pinned memory, from which transfers to a GPU run asynchronously.
    """
    options: dict[str, Any] = {}
    if workers:
        _start_server()
        options = {
            "num_workers": workers,
            "multiprocessing_context": "forkserver",
            "worker_init_fn": partial(_end_with, _pipe()[0]),
        }
    with warnings.catch_warnings():
        # The loop has its own warning about more workers than CPUs; torch would give two for each loader.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return iter(DataLoader(dataset, batch_size=None, sampler=numbers, pin_memory=pin, **options))


def _start_server() -> None:
    """Start the process from which workers are forked, with the stop signals blocked there and so in the workers.

    A stop signal would otherwise end a worker, while the training still needs its batches up to the step at which it
    saves.
    """
    # Started first: up to Python 3.12 starting it unblocks some of the signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pipe() -> tuple[Connection, Connection]:
    global _alive
    if _alive is None:
        _alive = multiprocessing.Pipe(duplex=False)
    return _alive


def _end_with(trainer: Connection, worker: int) -> None:
    """In a worker: end when the trainer ends.

    Torch's own check compares the parent's process id, but the parent is the server, which lives as long as its
    workers.
    """

    def wait() -> None:
        # Returns at the end of file: nothing is ever written.
        trainer.poll(None)
        os._exit(1)

    threading.Thread(target=wait, name=f"worker-{worker}-end", daemon=True).start()

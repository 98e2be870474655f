"""Reading batches ahead of the training, in other processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

BatchT = TypeVar("BatchT")

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Signals that terminals, ``kill`` and Slurm send to all processes of a training."""


def read_ahead(
    dataset: Dataset[BatchT], numbers: Sequence[int], *, workers: int, pin: bool
) -> Iterator[BatchT]:
    """The items ``numbers`` of ``dataset``, in order.

    Args:
        dataset: Batches by number.
        numbers: Which ones.
        workers: Reading processes; 0 reads in this process.
        pin: Copy batches to pinned memory, from which transfers to a GPU run asynchronously.
    """
    options: dict[str, Any] = {}
    if workers:
        _start_server()
        options = {"num_workers": workers, "multiprocessing_context": "forkserver"}
    return iter(DataLoader(dataset, batch_size=None, sampler=numbers, pin_memory=pin, **options))


def _start_server() -> None:
    """Start the process from which workers are forked, with the stop signals blocked there and so in the workers.

    A stop signal would otherwise end a worker, while the training still needs its batches up to the step at which it
    saves. Workers end with their parent.
    """
    # Started first: up to Python 3.12 starting it unblocks some of the signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""Checkpoints written by a background thread."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pscl_hpc.runs.checkpoint import CheckpointStore, serialise


class BackgroundWriter:
    """Copies a state at once and writes it from another thread, one at a time."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.saved = -1
        """Step of the last checkpoint to resume from that was handed over."""
        self.seconds: float | None = None
        """How long the last checkpoint took to write; None before the first."""

    def save(self, step: int, state: dict[str, Any], *, newest: bool = True, best: bool = False) -> None:
        """Copy ``state`` and begin to write it, after waiting for the previous checkpoint.

        Args:
            step: Step of the state.
            state: Tensors and plain values.
            newest: Write the checkpoint of this step, to resume from.
            best: Write ``best.pt``.

        Raises:
            JobError: the previous checkpoint could not be written.
        """
        self.flush()
        copy = _copy(state)
        self._pending = self._thread.submit(self._write, step, copy, newest, best)
        if newest:
            self.saved = step

    def flush(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            JobError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the thread; errors are not raised, see :meth:`flush`."""
        self._thread.shutdown()

    def _write(self, step: int, state: dict[str, Any], newest: bool, best: bool) -> None:
        began = time.monotonic()
        data = serialise(step, state)
        # The best first: the other one records that it exists.
        if best:
            self.store.write_best(step, data)
        if newest:
            self.store.write(step, data)
        self.seconds = time.monotonic() - began


def _copy(value: Any) -> Any:
    """The value with all tensors copied to the CPU, for the training changes them meanwhile."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(part) for part in value)
    return value

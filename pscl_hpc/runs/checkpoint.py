"""Checkpoints: the whole state, written atomically with a checksum and verified; the newest few are kept.

Checkpoints are loaded with ``weights_only=True``: they hold tensors and plain values, never code.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.files import replacing, write_text

BEST = "best.pt"
_NAME = re.compile(r"^step-(\d{8})\.pt$")


class CheckpointStore:
    """The ``checkpoints`` folder of a run.

    Args:
        folder: The folder; created when needed.
        keep: How many of the newest are kept.
        guard: Called before each write; raises when this process must not write any more.
    """

    def __init__(self, folder: Path, *, keep: int = 2, guard: Callable[[], None] | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.guard = guard or (lambda: None)

    def save(self, step: int, state: dict[str, Any], *, newest: bool = True, best: bool = False) -> Path:
        """Write a state.

        Args:
            step: Step of the state.
            state: Tensors and plain values.
            newest: Write ``step-<eight digits>.pt``, to resume from, and delete checkpoints of later steps and the
                oldest beyond ``keep``. Later steps are damaged ones that :meth:`load_latest` skipped; the run writes
                them again.
            best: Write ``best.pt``.

        Raises:
            JobError: it cannot be written; the previous checkpoint is kept.
        """
        self.write(step, _serialise(step, state), newest=newest, best=best)
        return self._path(step)

    def write(self, step: int, data: memoryview, *, newest: bool, best: bool) -> None:
        """As :meth:`save`, with the content of the file."""
        # The best first: the other one records that it exists.
        if best:
            self._write(step, self.folder / BEST, data)
        if newest:
            self._write(step, self._path(step), data)
            steps = self.steps()
            kept = [found for found in steps if found <= step][-self.keep :]
            for found in set(steps) - set(kept):
                self._remove(self._path(found))

    def flush(self) -> None:
        """Wait until everything that was saved is in the folder."""

    def close(self) -> None:
        """To be called when nothing more is saved."""

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.match(path.name) for path in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def load_latest(self) -> dict[str, Any] | None:
        """The newest intact checkpoint; None when there is no checkpoint.

        Damaged ones are skipped with a warning on standard error.

        Raises:
            UserError: all are damaged.
            JobError: one cannot be read, so that it is unknown whether it is damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                data = self.read(step)
            except UserError as error:
                damaged.append(str(error))
                continue
            for problem in damaged:
                print(f"warning: {problem}; using the checkpoint before it", file=sys.stderr, flush=True)
            return _deserialise(data)
        if damaged:
            raise UserError(
                f"{damaged[0]}, and no other checkpoint is intact; restore one from a copy, or delete the folder "
                f"{self.folder} to start from the beginning"
            )
        return None

    def load_best(self) -> dict[str, Any] | None:
        """``best.pt``, or None when there is none.

        Raises:
            UserError: it is damaged.
            JobError: it cannot be read.
        """
        try:
            data = self.read_best()
        except UserError as error:
            raise UserError(f"{error}; restore it from a copy, or start a new run with run=...") from None
        return None if data is None else _deserialise(data)

    def read(self, step: int) -> bytes:
        """The content of a checkpoint; UserError: damaged, JobError: it cannot be read."""
        return self._read(self._path(step))

    def read_best(self) -> bytes | None:
        """The content of ``best.pt``, or None when there is none; errors as of :meth:`read`."""
        path = self.folder / BEST
        return self._read(path) if path.is_file() else None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _write(self, step: int, path: Path, data: memoryview) -> None:
        self.guard()
        digest = hashlib.sha256(data).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The checksum first: without it a checkpoint counts as damaged.
            write_text(_checksum_path(path), digest + "\n")
            with replacing(path) as temporary:
                _write_verified(temporary, data, digest)
        except OSError as error:
            kept = [other for other in self.steps() if other != step]
            last = f"the last one is of step {kept[-1]}" if kept else "there is no earlier one"
            raise JobError(
                f"{path}: the checkpoint of step {step} could not be written ({error.strerror or error}), {last}; "
                "free disk space there and resume with the same command"
            ) from error

    def _read(self, path: Path) -> bytes:
        checksum = _checksum_path(path)
        try:
            data, wanted = path.read_bytes(), checksum.read_bytes().strip()
        except FileNotFoundError as error:
            raise UserError(f"{path}: damaged, {Path(error.filename).name} is missing") from None
        except OSError as error:
            raise JobError(
                f"{error.filename or path}: cannot be read ({error.strerror or error}); fix this and resume with the "
                "same command"
            ) from error
        if wanted != hashlib.sha256(data).hexdigest().encode():
            raise UserError(f"{path}: damaged, it does not match its checksum")
        return data

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        _checksum_path(path).unlink(missing_ok=True)


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

        Args: see :meth:`CheckpointStore.save`.

        Raises:
            JobError: the previous checkpoint could not be written.
        """
        self._wait()
        self._pending = self._thread.submit(self._write, step, _copy(state), newest, best)
        if newest:
            self.saved = step

    def flush(self) -> None:
        """Wait until the last checkpoint is in the run folder.

        Raises:
            JobError: it could not be written.
        """
        self._wait()
        self.store.flush()

    def close(self) -> None:
        """Wait for the thread; errors are not raised, see :meth:`flush`."""
        self._thread.shutdown()
        self.store.close()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, state: dict[str, Any], newest: bool, best: bool) -> None:
        began = time.monotonic()
        self.store.save(step, state, newest=newest, best=best)
        self.seconds = time.monotonic() - began


def _serialise(step: int, state: dict[str, Any]) -> memoryview:
    """A state as the content of a checkpoint file."""
    buffer = io.BytesIO()
    import torch

    torch.save({**state, "step": step}, buffer)
    return buffer.getbuffer()


def _deserialise(data: bytes) -> dict[str, Any]:
    """The state in a checkpoint file's content, on the CPU."""
    import torch

    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _write_verified(path: Path, data: memoryview, digest: str) -> None:
    """Write, sync, and compare with the checksum; read from the device if the system can drop its cached copy."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise OSError("reading it back gives other content")


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

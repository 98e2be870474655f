"""Checkpoints: whole state, written atomically with a checksum and read back, the newest few kept.

A checkpoint is read with ``weights_only=True``: it can hold tensors and plain values, never code.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.files import replace_file, write_text

BEST = "best.pt"
_NAME = re.compile(r"^step-(\d{8})\.pt$")


class CheckpointStore:
    """The ``checkpoints`` folder of a run.

    Args:
        folder: The folder; made when needed.
        keep: The newest that stay.
        guard: Called before each write; raises when this process may not write any more.
    """

    def __init__(self, folder: Path, *, keep: int = 2, guard: Callable[[], None] | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.guard = guard or (lambda: None)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``step-`` with eight digits and ``.pt``; drop those of later steps, and the oldest beyond ``keep``.

        Later steps are damaged ones that :meth:`latest` passed over; the run makes them again.

        Raises:
            JobError: when it cannot be written whole; the one before it stays.
        """
        return self.write(step, serialise(step, state))

    def save_best(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``best.pt``."""
        return self.write_best(step, serialise(step, state))

    def write(self, step: int, data: memoryview) -> Path:
        """:meth:`save` of a serialised state."""
        path = self._path(step)
        self._write(step, path, data)
        steps = self.steps()
        upto = [found for found in steps if found <= step]
        for found in steps:
            if found not in upto[-self.keep :]:
                self._remove(self._path(found))
        return path

    def write_best(self, step: int, data: memoryview) -> Path:
        """:meth:`save_best` of a serialised state."""
        path = self.folder / BEST
        self._write(step, path, data)
        return path

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.match(path.name) for path in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def latest(self) -> bytes | None:
        """The newest whole checkpoint's file content, or None where there is no checkpoint.

        A damaged one is passed over, and named on standard error.

        Raises:
            UserError: when all are damaged.
            JobError: when one cannot be read, which says nothing about what it holds.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                data = self._read(self._path(step))
            except UserError as error:
                damaged.append(str(error))
                continue
            for problem in damaged:
                print(f"warning: {problem}; the checkpoint before it is used", file=sys.stderr, flush=True)
            return data
        if damaged:
            raise UserError(
                f"{damaged[0]}, and no other checkpoint is whole; restore one from a copy, or delete the folder "
                f"{self.folder} to begin anew"
            )
        return None

    def load_latest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None; see :meth:`latest`."""
        data = self.latest()
        return None if data is None else deserialise(data)

    def load_best(self) -> dict[str, Any] | None:
        """``best.pt``, or None where there is none.

        Raises:
            UserError: when it is damaged.
            JobError: when it cannot be read.
        """
        path = self.folder / BEST
        if not path.is_file():
            return None
        try:
            return deserialise(self._read(path))
        except UserError as error:
            raise UserError(f"{error}; restore it from a copy, or begin anew with run=...") from None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _write(self, step: int, path: Path, data: memoryview) -> None:
        self.guard()
        digest = hashlib.sha256(data).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The checksum goes first: a checkpoint without one cannot be told from a torn one.
            write_text(_checksum_path(path), digest + "\n")
            replace_file(path, lambda temporary: _write_whole(temporary, data, digest))
        except OSError as error:
            whole = [kept for kept in self.steps() if kept != step]
            left = f"that of step {whole[-1]} is whole" if whole else "there is none before it"
            raise JobError(
                f"{path}: the checkpoint of step {step} could not be written ({error.strerror or error}); {left}: "
                "make room there and start the run again with the same command"
            ) from error

    def _read(self, path: Path) -> bytes:
        checksum = _checksum_path(path)
        try:
            data, wanted = path.read_bytes(), checksum.read_bytes().strip()
        except FileNotFoundError as error:
            raise UserError(f"{path}: is damaged, {Path(error.filename).name} is missing") from None
        except OSError as error:
            raise JobError(
                f"{error.filename or path}: cannot be read ({error.strerror or error}); mend that and start the run "
                "again with the same command"
            ) from error
        if wanted != hashlib.sha256(data).hexdigest().encode():
            raise UserError(f"{path}: is damaged, it does not match its checksum")
        return data

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        _checksum_path(path).unlink(missing_ok=True)


def serialise(step: int, state: dict[str, Any]) -> memoryview:
    """A state as the content of a checkpoint file."""
    buffer = io.BytesIO()
    import torch

    torch.save({**state, "step": step}, buffer)
    return buffer.getbuffer()


def deserialise(data: bytes) -> dict[str, Any]:
    """The state in a checkpoint file's content, on the CPU."""
    import torch

    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _write_whole(path: Path, data: memoryview, digest: str) -> None:
    """Write, sync, and read back from the device where the system can be told to forget its copy."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise OSError("it does not read back as it was written")

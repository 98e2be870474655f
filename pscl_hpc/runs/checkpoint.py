"""Checkpoints: whole state, written atomically with a checksum, the newest few kept.

A checkpoint is read with ``weights_only=True``: it can hold tensors and plain values, never code.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from pscl_hpc.errors import UserError
from pscl_hpc.runs.files import replace_file, write_text

BEST = "best.pt"
_NAME = re.compile(r"^step-(\d{8})\.pt$")


class CheckpointStore:
    """The ``checkpoints`` folder of a run."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``step-XXXXXXXX.pt`` and drop the oldest beyond ``keep``."""
        path = self.folder / f"step-{step:08d}.pt"
        self._write(path, {**state, "step": step})
        for old in self.steps()[: -self.keep]:
            self._remove(self.folder / f"step-{old:08d}.pt")
        return path

    def save_best(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``best.pt``."""
        path = self.folder / BEST
        self._write(path, {**state, "step": step})
        return path

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.match(path.name) for path in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def load_latest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None. A damaged one is named in a warning and passed over."""
        for step in reversed(self.steps()):
            path = self.folder / f"step-{step:08d}.pt"
            try:
                return self._read(path)
            except UserError as error:
                warnings.warn(f"{error}; the checkpoint before it is used", stacklevel=2)
        return None

    def load_best(self) -> dict[str, Any] | None:
        """``best.pt``, or None where there is none."""
        path = self.folder / BEST
        return self._read(path) if path.is_file() else None

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getbuffer()
        # The checksum goes first: a checkpoint without one cannot be told from a torn one.
        write_text(_checksum_path(path), hashlib.sha256(data).hexdigest() + "\n")
        replace_file(path, lambda temporary: _write_bytes(temporary, data))

    def _read(self, path: Path) -> dict[str, Any]:
        data = path.read_bytes()
        checksum = _checksum_path(path)
        if not checksum.is_file() or checksum.read_text().strip() != hashlib.sha256(data).hexdigest():
            raise UserError(f"{path}: does not match its checksum; it is damaged, delete it")
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return state

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        _checksum_path(path).unlink(missing_ok=True)


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _write_bytes(path: Path, data: memoryview) -> None:
    path.write_bytes(data)

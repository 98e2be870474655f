"""Checkpoints that are written to a local disk first and copied to the run folder behind the training.

They are in ``<folder>/pscl-hpc-<user>/<run>-<attempt>/``. A checkpoint counts as saved when it is on the local disk; if the
process is killed before it is copied, the next attempt finds it there, as long as it runs on the same node. When an
attempt ends in order, everything is copied and its local folder removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.files import user_name
from pscl_hpc.runs.checkpoint import CheckpointStore


@dataclass(frozen=True)
class LocalFolder:
    """Where an attempt at a run has its local checkpoints."""

    home: Path
    run: str
    """Of the run, the same in every attempt and unlike that of any other run."""
    attempt: int

    @classmethod
    def of(cls, setting: str, run: Path, created: str, attempt: int) -> LocalFolder:
        """The folder for ``checkpoint.local``, in which variables of the environment may stand.

        Raises:
            UserError: a variable is not set, or the path is not absolute.
        """
        path = Path(os.path.expandvars(setting))
        if not path.is_absolute() or "$" in str(path):
            raise UserError(
                f"checkpoint.local: {setting!r} is not an absolute path on this node"
                f"{' (a variable is not set)' if '$' in str(path) else ''}; give a folder on a local disk"
            )
        key = hashlib.sha256(f"{run.absolute()} {created}".encode()).hexdigest()[:16]
        return cls(path / f"pscl-hpc-{user_name()}", key, attempt)

    @property
    def path(self) -> Path:
        return self.home / f"{self.run}-{self.attempt}"

    def before(self) -> LocalFolder:
        """That of the attempt before."""
        return LocalFolder(self.home, self.run, self.attempt - 1)

    def remove_all(self, *, keep: Path | None = None) -> None:
        """Remove the folders of all attempts at this run."""
        for found in self.home.glob(f"{self.run}-*"):
            if found != keep and re.fullmatch(rf"{self.run}-\d+", found.name):
                shutil.rmtree(found, ignore_errors=True)


class CopiedStore(CheckpointStore):
    """A run's checkpoints with a local folder before it.

    Args:
        folder, keep, guard: As of :class:`CheckpointStore`, for the run folder.
        local: The local folder of this attempt.
    """

    def __init__(
        self, folder: Path, *, keep: int, guard: Callable[[], None] | None, local: LocalFolder
    ) -> None:
        super().__init__(folder, keep=keep, guard=guard)
        self.local = CheckpointStore(local.path, keep=1, guard=guard)
        self._place = local
        self._thread: ThreadPoolExecutor | None = None
        self._copies: list[tuple[Future[None], tuple[int, memoryview, bool, bool]]] = []
        """Copies that are not known to be done, the oldest first."""
        self._warned = False

    def write(self, step: int, data: memoryview, *, newest: bool, best: bool) -> None:
        """Write to the local disk and begin to copy; straight to the run folder if the local disk fails.

        Raises:
            JobError: an earlier copy failed.
        """
        self._raise_failed()
        try:
            self.local.write(step, data, newest=newest, best=best)
        except JobError as error:
            self.guard()  # the reason may be that another attempt has taken over
            if not self._warned:
                print(
                    f"warning: {error.__cause__ or error}: checkpoints are written straight to {self.folder}",
                    file=sys.stderr,
                    flush=True,
                )
            self._warned = True
            self.flush()
            super().write(step, data, newest=newest, best=best)
            return
        # A copy that has not begun is left out, because this one is newer; not if it is of the best weights.
        kept = []
        for copy, (number, content, was_newest, was_best) in self._copies:
            if not copy.cancel():
                kept.append((copy, (number, content, was_newest, was_best)))
            elif was_best and not best:
                kept.append(self._begin(number, content, False, True))
        self._copies = [*kept, self._begin(step, data, newest, best)]

    def flush(self) -> None:
        """Wait until the run folder has everything.

        Raises:
            JobError: a copy failed.
        """
        for copy, _ in self._copies:
            if not copy.cancelled():
                copy.exception()
        self._raise_failed()

    def close(self) -> None:
        """Wait for the copies; the local folder is removed if none has failed."""
        if self._thread is not None:
            self._thread.shutdown()
        if all(copy.exception() is None for copy, _ in self._copies):
            self._place.remove_all()

    def load_latest(self) -> dict[str, Any] | None:
        """The newest intact checkpoint, of the run folder or of the attempt before on this node.

        One that only the local disk has is copied to the run folder first.
        """
        before = CheckpointStore(self._place.before().path)
        found = max(before.steps(), default=-1)
        if found > max(self.steps(), default=-1):
            try:
                if (best := before.read_best()) is not None:
                    super().write(found, memoryview(best), newest=False, best=True)
                super().write(found, memoryview(before.read(found)), newest=True, best=False)
                print(f"checkpoint of step {found} found in {before.folder}", file=sys.stderr, flush=True)
            except UserError as error:
                print(f"warning: {error}; using {self.folder}", file=sys.stderr, flush=True)
        self._place.remove_all(keep=self._place.path)
        return super().load_latest()

    def _begin(
        self, step: int, data: memoryview, newest: bool, best: bool
    ) -> tuple[Future[None], tuple[int, memoryview, bool, bool]]:
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="copy")
        copy = self._thread.submit(super().write, step, data, newest=newest, best=best)
        return copy, (step, data, newest, best)

    def _raise_failed(self) -> None:
        done = [copy for copy, _ in self._copies if copy.done() and not copy.cancelled()]
        for copy in done:
            copy.result()
        self._copies = [entry for entry in self._copies if entry[0] not in done]

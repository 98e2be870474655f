"""A run folder: created once, resumed by the same configuration, never overwritten.

The process that works in it holds its lock and its newest attempt (see ``attempts``); with several ranks this is rank
0.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pscl_hpc.config import RunConfig
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.files import remove_leftovers, write_json, writing
from pscl_hpc.runs.attempts import Attempt
from pscl_hpc.runs.checkpoint import CheckpointStore
from pscl_hpc.runs.local_copy import CopiedStore, LocalFolder
from pscl_hpc.runs.lock import take_lock
from pscl_hpc.runs.metrics import MetricsLog
from pscl_hpc.runs.places import check_same, reserve_folder, usable
from pscl_hpc.runs.provenance import describe_attempt, describe_device, now
from pscl_hpc.runs.record import CHECKPOINTS, METRICS_FILE, RECORD_FILE, RecordedRun, read_record, steps_of
from pscl_hpc.runs.status_file import StatusFile
from pscl_hpc.runs.trackers import open_trackers

if TYPE_CHECKING:
    import torch

RESERVE_FILE = "reserve"
_RESERVE_BYTES = 65536
"""Deleted when the work ends, so that its end can be recorded on a disk that is full or over quota."""


class RunFolder(RecordedRun):
    """The folder of one run. Use :meth:`start` to work in it, and :meth:`load` to read it."""

    def __init__(self, path: Path, config: RunConfig | None, record: dict[str, Any]) -> None:
        super().__init__(path, config, record)
        self._lock: IO[str] | None = None
        self._attempt: Attempt | None = None
        self._stopped: str | None = None
        self._status: StatusFile | None = None

    @classmethod
    def start(cls, config: RunConfig, device: torch.device, nodes: Sequence[str] = ()) -> RunFolder:
        """Create the folder of a new run, or open that of an unfinished one with the same configuration.

        Args:
            config: The run.
            device: For the record.
            nodes: Node of each rank, when there are several.

        Raises:
            UserError: the folder holds other files or another configuration, is in use, or cannot be written.
            JobError: the disk is full.
        """
        folder = cls.reserve(config)
        with usable(folder.path):
            folder._lock = take_lock(folder.path)
        try:
            # Again under the lock: another process may have created the folder at the same time.
            check_same(folder.path, config)
            folder._open_record(device, nodes)
            if folder.done:
                folder._release()
        except BaseException:
            (folder.path / RESERVE_FILE).unlink(missing_ok=True)
            folder._release()
            raise
        return folder

    @classmethod
    def reserve(cls, config: RunConfig) -> RunFolder:
        """Create the folder of a new run with its configuration, or find that of the same run; does not start the run.

        Raises:
            UserError: the folder holds other files or another configuration, or cannot be created.
        """
        path = reserve_folder(config)
        return cls(path, config, read_record(path) if (path / RECORD_FILE).exists() else {})

    @classmethod
    def follow(
        cls, path: str | Path, config: RunConfig, *, done: bool, decided: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """The folder in which rank 0 works, for the other ranks: they never write there and may not even see it."""
        return cls(Path(path), config, {"status": "done" if done else "", "decided": dict(decided or {})})

    def decide(self, decided: Mapping[str, Any]) -> None:
        """Record what the run decides; in a folder that is followed, for this process only."""
        if self._attempt is not None:
            self.update(decided=dict(decided), steps=steps_of(self.config.with_decisions(decided)))
        else:
            self.record["decided"] = dict(decided)

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        keep, place = self.setting("checkpoint.keep", int), self.path / CHECKPOINTS
        local = self._tree["checkpoint"].get("local")
        if not local or self._attempt is None:
            return CheckpointStore(place, keep=keep, guard=self.check_owner)
        own = LocalFolder.of(local, self.path, str(self.record.get("created", "")), self._attempt.number)
        return CopiedStore(place, keep=keep, guard=self.check_owner, local=own)

    def check_owner(self) -> None:
        """Check that this process may still write here.

        Raises:
            JobError: a later attempt has taken over.
        """
        if self._attempt is not None:
            self._attempt.check()

    def metrics_log(self) -> MetricsLog:
        """The log to append to."""
        config, created = self.config, str(self.record.get("created", ""))
        tree = config.model_dump(mode="json")
        trackers = open_trackers(config.log, self.path, config.name, created, tree)
        path = self.path / METRICS_FILE
        return MetricsLog(path, trackers=trackers, guard=self.check_owner, listen=self._progress)

    def update(self, **values: Any) -> None:
        """Change entries of run.json.

        Raises:
            JobError: a later attempt has taken over, or it cannot be written.
        """
        self.check_owner()
        self.record.update(values)
        with writing(self.path / RECORD_FILE):
            write_json(self.path / RECORD_FILE, self.record)
        self._status = self._status or StatusFile(self.path, self.newest_checkpoint)
        self._status.record(self.record, self.first_purged())

    def _progress(self, line: dict[str, Any]) -> None:
        """Called with every new line of the log."""
        if self._status is not None:
            self._status.line(line)

    def set_purge(self, days: int | None) -> None:
        """Record the site's policy, and where the archive is, so that the configuration need not be read for it."""
        archive = str(Path(self.setting("data.archive", str)).absolute())
        self.update(purge={"days": days, "archive": archive} if days else None)

    def keep_last_end(self, known: str = "") -> None:
        """Record in the newest attempt how it ended, before the next attempt overwrites the status.

        Args:
            known: How it ended, used when the record has no error.
        """
        if not self.attempts or self.done or "ended" in self.attempts[-1]:
            return
        self.attempts[-1]["ended"] = (
            str(self.record.get("error") or "")
            or known
            or "unknown: the node failed, or the run was killed or requeued"
        )
        self.update(attempts=self.attempts)

    def record_first_step(self, step: int) -> None:
        """Record the step after which this attempt begins."""
        if self._attempt is not None:
            self.attempts[-1]["first_step"] = step
            self.update(attempts=self.attempts)

    def stop(self, reason: str) -> None:
        """Announce that the exception about to end the work is a requested stop, for this reason."""
        self._stopped = reason

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how the work ended: done, failed with its reason, or stopped (can be resumed)."""
        try:
            if self._attempt is None:
                return
            if error is None:
                (self.path / RESERVE_FILE).unlink(missing_ok=True)
                self.update(status="done", finished=now(), error="")
                return
            # On a full disk this makes the room to record its end.
            (self.path / RESERVE_FILE).unlink(missing_ok=True)
            # The error that ended the work matters more than a failure to record it.
            with contextlib.suppress(JobError):
                if self._stopped is not None or isinstance(error, KeyboardInterrupt | SystemExit):
                    self.update(status="stopped", error=self._stopped or type(error).__name__)
                else:
                    text = str(error) if isinstance(error, JobError | UserError) else _name(error)
                    self.update(status="failed", finished=now(), error=text)
        finally:
            self._release()

    def _open_record(self, device: torch.device, nodes: Sequence[str]) -> None:
        # Read again under the lock: another process may have finished the run in the meantime.
        self.record = read_record(self.path) if (self.path / RECORD_FILE).exists() else {}
        if self.done:
            return
        with writing(self.path / RESERVE_FILE):
            # Not zeros, which some file systems do not store.
            (self.path / RESERVE_FILE).write_bytes(os.urandom(_RESERVE_BYTES))
        about = describe_attempt()
        self._attempt = Attempt.begin(self.path, about)
        self.keep_last_end()
        for place in (self.path, self.path / CHECKPOINTS):
            remove_leftovers(place)
        attempts = [*self.attempts, {"number": self._attempt.number, **about, "ranks": max(1, len(nodes))}]
        if nodes:
            attempts[-1]["nodes"] = list(dict.fromkeys(nodes))
        self.update(
            kind=self.config.kind,
            name=self.config.name,
            steps=steps_of(self.decided_config),
            status="running",
            created=self.record.get("created", now()),
            device=describe_device(device),
            attempts=attempts,
            error="",
        )

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"

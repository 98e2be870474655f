"""What a run folder tells of its run: configuration, record, log, newest checkpoint. Nothing here writes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Self, TypeVar

from pscl_hpc.config import RunConfig, TrainingConfig, load_config, read_tree
from pscl_hpc.errors import UserError
from pscl_hpc.runs.checkpoint import CheckpointStore
from pscl_hpc.runs.metrics import read_metrics
from pscl_hpc.runs.places import CONFIG_FILE
from pscl_hpc.runs.purge import Purge, first_purged

T = TypeVar("T")

RECORD_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


class RecordedRun:
    """A run as its folder records it; :meth:`load` opens one.

    Attributes:
        path: The folder.
        record: The content of run.json.
    """

    def __init__(self, path: Path, config: RunConfig | None, record: dict[str, Any]) -> None:
        """See the class; without ``config`` it is read from the folder when it is needed."""
        self.path = path
        self.record = record
        self._given = config

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open an existing run.

        Raises:
            UserError: there is no run, or its record cannot be read.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: run folder not found; by default run folders are in runs/")
        if not _is_run(path):
            inside = next((child for child in sorted(path.iterdir()) if _is_run(child)), None)
            raise UserError(
                f"{path}: not a run folder, {CONFIG_FILE} or {RECORD_FILE} is missing"
                + (f"; did you mean {inside}?" if inside else "")
            )
        return cls(path, None, read_record(path))

    @functools.cached_property
    def config(self) -> RunConfig:
        """The configuration. The first use in a folder that was loaded imports its schema and torch, in seconds."""
        return self._given or load_config(self.path / CONFIG_FILE)

    @property
    def decided(self) -> dict[str, Any]:
        """What the run decided at its start, by key of the configuration: the number of steps, the precision."""
        found: dict[str, Any] = self.record.get("decided", {})
        return found

    @property
    def decided_config(self) -> RunConfig:
        """The configuration with what the run has :attr:`decided`."""
        return self.config.with_decisions(self.decided)

    def setting(self, key: str, kind: type[T]) -> T:
        """One value of the configuration, such as ``schedule.steps``, without the import of its schema; what the run
        has decided where that is left open.

        Raises:
            UserError: the configuration cannot be read, or has no such key or one of another type.
        """
        value: Any = self._tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        value = self.decided.get(key, value)
        if not isinstance(value, kind):
            raise UserError(
                f"{self.path / CONFIG_FILE}: key '{key}' is missing or not of type {kind.__name__}; restore the file "
                "from a copy"
            )
        return value

    @functools.cached_property
    def _tree(self) -> dict[str, Any]:
        return self._given.model_dump() if self._given else read_tree(self.path / CONFIG_FILE)

    @property
    def done(self) -> bool:
        """Whether the run is finished."""
        return bool(self.record.get("status") == "done")

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The processes that have worked on the run, the newest last."""
        found: list[dict[str, Any]] = self.record.get("attempts", [])
        return found

    def metrics(self) -> list[dict[str, Any]]:
        """All logged lines."""
        return read_metrics(self.path / METRICS_FILE)

    def newest_checkpoint(self) -> int | None:
        """Step of the newest checkpoint, without reading the configuration."""
        steps = CheckpointStore(self.path / CHECKPOINTS).steps()
        return steps[-1] if steps else None

    def first_purged(self) -> Purge | None:
        """The first file that the site deletes, of the run or its archive; None if its policy is not known."""
        policy = self.record.get("purge")
        if not policy:
            return None
        return first_purged((self.path, Path(policy["archive"])), int(policy["days"]))

    @property
    def steps(self) -> int:
        """Steps of the training loop; 0 for a run without it, such as that of a classifier, or not decided yet.

        From the record where it has them: the configuration takes longer to read. UserError: unreadable.
        """
        known = self.record.get("steps")
        if isinstance(known, int):
            return known
        return self.setting("schedule.steps", int) if "schedule" in self._tree else 0


def read_record(path: Path) -> dict[str, Any]:
    """The record in a run folder; UserError if it cannot be read."""
    try:
        record = json.loads((path / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise UserError(f"{path / RECORD_FILE}: cannot be read as JSON; restore it from a copy") from None
    if not isinstance(record, dict):
        raise UserError(f"{path / RECORD_FILE}: not the record of a run; restore it from a copy")
    return record


def steps_of(config: RunConfig) -> int:
    """Steps of a configuration's training loop; 0 for a run without it, or while they are not decided."""
    return config.schedule.steps if isinstance(config, TrainingConfig) else 0


def _is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() and (path / RECORD_FILE).is_file()

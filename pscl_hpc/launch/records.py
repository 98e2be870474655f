"""Records of submitted jobs: one small JSON file for each, in the folder ``jobs`` of its run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pscl_hpc.errors import UserError
from pscl_hpc.files import write_json

JOBS = "jobs"


@dataclass(frozen=True)
class JobRecord:
    """One submission."""

    job: str
    """The cluster's job id; for a local job the id of its controller process."""
    cluster: str
    stage: str
    submitted: float
    """Unix seconds."""
    when: str
    """The same as text."""
    host: str
    """The machine from which it was submitted."""
    folder: str
    """The working directory, to which paths in the configuration are relative."""
    commit: str
    """Commit of the code, with ``+changes`` if it was edited; empty outside a checkout."""
    started: str = ""
    """Start time of a local job's process, which distinguishes it from a later process with the same id."""
    files: str = ""
    """Folder of the job's scripts and logs; empty for ``jobs`` of the run."""
    nodes: int = 1
    tasks: int = 1
    """Ranks on all nodes."""
    any_commit: bool = False
    """Whether the job may start on changed code."""
    entry: str = ""
    """``module:function`` that the job runs instead of the run's stage."""
    profile: dict[str, Any] = field(default_factory=dict)
    """The resources requested."""

    def place(self, run: Path) -> Path:
        """The folder of the job's scripts and logs."""
        return Path(self.files) if self.files else run / JOBS

    def log(self, run: Path, rank: int = 0) -> Path:
        """The log file of a rank."""
        return self.place(run) / f"{self.job}_{rank}_log.out"


def save_job(run: Path, record: JobRecord) -> None:
    """Write the record of a job."""
    write_json(run / JOBS / f"{record.job}.json", dataclasses.asdict(record))


def job_records(run: Path) -> list[JobRecord]:
    """The jobs of a run, oldest first; empty if it was started by hand.

    Raises:
        UserError: a record cannot be read.
    """
    records = []
    for path in (run / JOBS).glob("*.json"):
        try:
            records.append(JobRecord(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            raise UserError(
                f"{path}: cannot be read as a job's record; restore it from a copy or delete it"
            ) from None
    return sorted(records, key=lambda record: record.submitted)


def latest_job(run: Path) -> JobRecord | None:
    """The newest job of a run."""
    return max(job_records(run), key=lambda record: record.submitted, default=None)

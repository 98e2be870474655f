"""Submitted jobs, one small JSON file each, in the folder ``jobs`` of their run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pscl_hpc.errors import UserError
from pscl_hpc.runs import write_json

JOBS = "jobs"


@dataclass(frozen=True)
class JobRecord:
    """One submission."""

    job: str
    """The cluster's job id; of a local job its process id."""
    cluster: str
    stage: str
    submitted: float
    """Unix seconds."""
    when: str
    """The same for people."""
    host: str
    """The machine that it was submitted on."""
    folder: str
    """The working directory, from which relative paths in the configuration start."""
    commit: str
    """Commit of the code, with ``+changes`` when it was edited; empty outside a checkout."""
    started: str = ""
    """Start time of a local job's process, by which a reused process id is told from it."""
    files: str = ""
    """Folder of the job's scripts and logs; the run's own ``jobs`` when empty."""
    nodes: int = 1
    tasks: int = 1
    """Ranks on all nodes."""
    any_commit: bool = False
    """Whether the job may start on code that was changed since."""
    entry: str = ""
    """``module:function`` that the job does in place of the run's stage."""
    profile: dict[str, Any] = field(default_factory=dict)
    """What was asked for."""

    def log(self, run: Path, rank: int = 0) -> Path:
        """The file that a rank prints to."""
        return (Path(self.files) if self.files else run / JOBS) / f"{self.job}_{rank}_log.out"


def save_job(run: Path, record: JobRecord) -> None:
    """Write the record of a job."""
    write_json(run / JOBS / f"{record.job}.json", dataclasses.asdict(record))


def job_records(run: Path) -> list[JobRecord]:
    """The jobs of a run, oldest first; none when it was started by hand."""
    records = []
    for path in (run / JOBS).glob("*.json"):
        try:
            records.append(JobRecord(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{path}: is no record of a job; restore it from a copy or delete it") from None
    return sorted(records, key=lambda record: record.submitted)


def latest_job(run: Path) -> JobRecord | None:
    """The newest job of a run."""
    records = job_records(run)
    return records[-1] if records else None

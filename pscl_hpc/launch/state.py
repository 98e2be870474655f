"""The state of a run, from what it recorded and what is known of its newest job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pscl_hpc.launch.ends import CANCELLED, EXIT_FULL, FULL_REASON, last_end, read_failures
from pscl_hpc.launch.records import JOBS, JobRecord
from pscl_hpc.launch.schedulers import JobState
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.lock import is_locked

State = Literal["prepared", "queued", "starting", "running", "done", "failed", "stopped", "lost"]
"""prepared: the folder has its configuration, but no job or process has started yet.

lost: recorded as running, but nothing runs; submitting it again resumes it from the last checkpoint.
"""


@dataclass(frozen=True)
class Known:
    """What is known of a run and its newest job."""

    folder: RunFolder
    job: JobRecord | None
    asked: JobState | None

    @property
    def recorded(self) -> str:
        """The status in the run's record."""
        return str(self.folder.record.get("status"))

    @property
    def phase(self) -> str:
        """The phase of the job; ``ended`` without one."""
        return self.asked.phase if self.asked else "ended"

    @property
    def start(self) -> tuple[str, int]:
        """Job and number of restarts that the newest attempt belongs to; -1 if it is not known."""
        text = str(self.folder.attempts[-1].get("job", "")) if self.folder.attempts else ""
        job, _, restart = text.rpartition(".")
        return job, int(restart) if restart.isdigit() else -1

    def dead(self) -> str:
        """Why the newest attempt no longer runs although the record says so, while its job restarts; empty if it
        does."""
        if self.job is None or self.asked is None or self.recorded != "running":
            return ""
        job, restart = self.start
        if job and job != self.job.job:
            return "the attempt of an earlier job has ended"
        if restart < 0:
            return ""
        for failure in read_failures(self.job.place(self.folder.path), job):
            if failure.restart == restart:
                return f"restarting, because {failure.text()}"
        if self.asked.restart is not None and self.asked.restart > restart:
            return "restarting after its node failed, or the job was killed or requeued"
        return ""

    def reason(self) -> str:
        """Why the job's last start ended, from the files beside its logs; empty if they do not tell."""
        if self.job is None:
            return ""
        files = self.job.place(self.folder.path)
        restart, _, reason = last_end(files, self.job.job)
        failures = read_failures(files, self.job.job)
        if failures and failures[-1].restart > restart:
            return failures[-1].text()
        job, newest = self.start
        return "" if job == self.job.job and restart < newest else reason


def state_of(known: Known) -> State:
    """The state of a run, from what it recorded, its job and its lock."""
    recorded, phase = known.recorded, known.phase
    if recorded == "done":
        return "done"
    if phase == "pending":
        return "queued"
    if phase == "running":
        return "running" if recorded == "running" and not known.dead() else "starting"
    full = known.asked is not None and known.asked.code == EXIT_FULL
    if recorded == "failed" or full:
        return "failed"
    if known.job is not None and phase == "ended" and recorded in ("stopped", "queued") and known.reason():
        return "failed"
    if recorded == "stopped":
        return "stopped"
    if recorded == "running" and (phase == "unknown" or is_locked(known.folder.path)):
        return "running"
    if known.asked is None and recorded != "running":
        return "prepared"
    return "queued" if phase == "unknown" else "lost"


def detail_of(known: Known, state: State) -> str:
    """The scheduler's words, or why the run failed."""
    said = known.asked.detail if known.asked else ""
    error = str(known.folder.record.get("error") or "")
    reason = known.reason() if known.phase == "ended" else ""
    if state == "prepared":
        return "not started yet; the same command starts it"
    if state == "lost" and known.asked is not None:
        ended = f" ({'; '.join(filter(None, (reason, said)))})" if said or reason else ""
        return (
            f"its job crashed or was killed{ended}; see 'pscl-hpc jobs logs' and {known.folder.path / JOBS}"
        )
    if state == "lost":
        return "its process is gone; the same command resumes it"
    if state == "failed":
        full = FULL_REASON if known.asked is not None and known.asked.code == EXIT_FULL else ""
        return (error if known.recorded == "failed" else "") or reason or full or error
    if state == "stopped":
        # Stopped to be continued, but the job has ended: Slurm knows why.
        return error if not said or error == CANCELLED else f"{error}; its job has ended ({said})"
    # While a job is alive, the recorded error is that of the previous attempt.
    return (known.dead() if state in ("starting", "queued") else "") or said

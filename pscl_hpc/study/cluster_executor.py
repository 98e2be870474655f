"""Jobs of a study as jobs of a cluster, or as detached processes of this machine; they outlive the study's command."""

from __future__ import annotations

import time
from pathlib import Path

from pscl_hpc.errors import UserError
from pscl_hpc.launch.executors import check_resources
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.registry import latest_job
from pscl_hpc.launch.schedulers import SCHEDULERS
from pscl_hpc.launch.submission import submit_many
from pscl_hpc.runs import RunFolder
from pscl_hpc.study.plan import Job
from pscl_hpc.study.process_executor import last_error
from pscl_hpc.study.schedule import Outcome
from pscl_hpc.study.stage import is_done

ENTRY = "pscl_hpc.study.stage:run_stage"
_ASK_S = {"local": 0.5, "slurm": 5.0}
"""A scheduler is asked about one job this often: squeue is not to be asked about hundreds at once."""
_LOOK_S = 1.0
_LATE_S = 30.0
"""How long after a job's end its run may still look unfinished, on a shared file system."""


class ClusterJobs:
    """Submits what can start together as one array.

    Args:
        cluster: ``local`` or ``slurm``.
        profile: What each job asks for.
        folder: Of the study.
        name: Of the arrays.
        any_commit: Let jobs start on code that was changed since they were submitted.

    Raises:
        UserError: the cluster is not here, or the profile does not fit it or a job of one process.
    """

    def __init__(
        self, cluster: str, profile: Profile, folder: Path, name: str, *, any_commit: bool = False
    ) -> None:
        if profile.nodes * profile.tasks > 1:
            raise UserError(
                f"the jobs of a study are one process each, but the profile asks for {profile.nodes * profile.tasks}; "
                "ask for one node with at most one GPU"
            )
        check_resources(cluster, profile)
        self._cluster = cluster
        self._profile = profile
        self._files = folder / "jobs"
        self._name = name
        self._any_commit = any_commit
        self._new: list[Job] = []
        self._running: dict[str, Job] = {}
        self._ended: dict[str, float] = {}
        self._asked = 0.0
        self._looked = 0.0
        self._next = 0

    def start(self, job: Job) -> None:
        """Begin a job, or wait for the one that is at work on the same run already."""
        record = latest_job(job.folder)
        alive = record is not None and SCHEDULERS[record.cluster].state(record).phase in (
            "pending",
            "running",
        )
        # It may have ended since the study looked; the next look finds it done.
        if alive or _ended_well(job):
            self._running[job.key] = job
        else:
            self._new.append(job)

    def poll(self) -> dict[str, Outcome]:
        """Submit what was started, and look what has ended."""
        outcomes = self._submit()
        if time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            found = [key for key, job in self._running.items() if _ended_well(job)]
            outcomes.update({key: Outcome("done") for key in found})
        for key, job in self._ask():
            # The file system of the cluster may be behind its scheduler.
            if time.monotonic() - self._ended.setdefault(key, time.monotonic()) >= self._patience:
                outcomes.setdefault(key, Outcome("failed", _reason(job)))
        for key in outcomes:
            self._running.pop(key, None)
            self._ended.pop(key, None)
        return outcomes

    def stop(self) -> None:
        """Nothing: the jobs go on, and the same command finds them."""

    @property
    def _patience(self) -> float:
        return 0.0 if self._cluster == "local" else _LATE_S

    def _submit(self) -> dict[str, Outcome]:
        new, self._new = self._new, []
        if not new:
            return {}
        try:
            self._send(new)
        except UserError as error:
            if len(new) == 1:
                return {new[0].key: Outcome("failed", str(error))}
        else:
            return {}
        # One that cannot be submitted must not keep the others back.
        outcomes = {}
        for job in new:
            try:
                self._send([job])
            except UserError as error:
                outcomes[job.key] = Outcome("failed", str(error))
        return outcomes

    def _send(self, jobs: list[Job]) -> None:
        submit_many(
            [job.config for job in jobs],
            cluster=self._cluster,
            files=self._files,
            name=self._name,
            profile=self._profile,
            any_commit=self._any_commit,
            entry=ENTRY,
        )
        self._running.update({job.key: job for job in jobs})

    def _ask(self) -> list[tuple[str, Job]]:
        """Jobs of which the scheduler says that they have ended, asked one at a time."""
        jobs = list(self._running.items())
        if not jobs or time.monotonic() - self._asked < _ASK_S[self._cluster]:
            return []
        self._asked = time.monotonic()
        self._next = (self._next + 1) % len(jobs)
        key, job = jobs[self._next]
        record = latest_job(job.folder)
        # A scheduler that does not answer has not said that the job is at its end.
        if record is not None and SCHEDULERS[record.cluster].state(record).phase != "ended":
            self._ended.pop(key, None)
            return []
        return [] if _ended_well(job) else [(key, job)]


def _reason(job: Job) -> str:
    """Why a job failed: what its run recorded, or what it said after its run was done."""
    record = latest_job(job.folder)
    return (
        str(RunFolder.load(job.folder).record.get("error") or "")
        or (last_error(record.log(job.folder)) if record is not None else "")
        or f"its job ended without a word; see {job.folder / 'jobs'}"
    )


def _ended_well(job: Job) -> bool:
    return is_done(job.folder, job.config.kind, job.fingerprint, job.tests)

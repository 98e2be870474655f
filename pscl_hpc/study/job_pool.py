"""The jobs of a study, as jobs of this machine or of Slurm."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from pathlib import Path
from typing import Literal

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.launch.executors import check_resources, visible_gpus
from pscl_hpc.launch.local import STOP_GRACE_S
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import JOBS, latest_job
from pscl_hpc.launch.schedulers import SCHEDULERS, wait_for_end
from pscl_hpc.launch.submission import submit_many
from pscl_hpc.runs import RunFolder
from pscl_hpc.study.plan import Job
from pscl_hpc.study.schedule import Outcome

ENTRY = "pscl_hpc.study.stage:run_stage"
_SLURM_ASK_S = 5.0
"""Slurm is asked about one job this often: squeue should not be asked about hundreds at once."""
_LOOK_S = 1.0
_SHARED_DISK_S = 30.0
"""How long after a Slurm job's end its run may still look unfinished on a shared file system."""


class JobPool:
    """Starts the jobs of a study; jobs that can start together on Slurm are one array.

    Args:
        cluster: ``inline``: jobs on this machine that end with the study. ``local``: jobs on this machine that outlive
            it. ``slurm``: job arrays.
        profile: the resources of each job.
        folder: of the study.
        name: of the jobs.
        any_commit: let jobs start even if the code has changed since they were submitted.

    Raises:
        UserError: the cluster is not available, or the profile does not fit it or asks for several processes.
    """

    def __init__(
        self,
        cluster: Literal["inline", "local", "slurm"],
        profile: Profile,
        folder: Path,
        name: str,
        *,
        any_commit: bool = False,
    ) -> None:
        if profile.nodes * profile.tasks > 1:
            raise UserError(
                f"the profile asks for {profile.nodes * profile.tasks} processes, but a job of a study is one process; "
                "ask for one node with at most one GPU"
            )
        self._inline = cluster == "inline"
        self._cluster = "local" if self._inline else cluster
        check_resources(self._cluster, profile)
        self._profile = profile
        self._files = folder / JOBS
        self._name = name
        self._any_commit = any_commit
        self._attached: int | None = None
        self._gpus: list[str] = []
        if self._inline:
            import torch

            self._gpus = visible_gpus(torch.cuda.device_count())
            self._attached, end = os.pipe()
            weakref.finalize(self, os.close, self._attached)
            self._close_pipe = weakref.finalize(self, os.close, end)
        self._new: list[Job] = []
        self._running: dict[str, Job] = {}
        self._gpu_of: dict[str, str] = {}
        self._adopted: set[str] = set()
        self._ended: dict[str, float] = {}
        self._asked = 0.0
        self._looked = 0.0
        self._next = 0

    def start(self, job: Job) -> None:
        """Start a job, or wait for the job that is already working on the same run."""
        record = latest_job(job.folder)
        phase = SCHEDULERS[record.cluster].state(record).phase if record is not None else "ended"
        if phase in ("pending", "running"):
            self._adopted.add(job.key)
            self._running[job.key] = job
        elif job.is_done():
            # It has finished since the study looked; the next poll reports it.
            self._running[job.key] = job
        else:
            self._new.append(job)

    def poll(self) -> dict[str, Outcome]:
        """Submit the jobs that were started, and return those that have ended since the last call."""
        outcomes = self._submit()
        for key, job in self._look():
            if job.is_done():
                outcomes[key] = Outcome("done")
            elif key in self._adopted:
                # It was stopped or failed under another command: this one tries it again.
                self._adopted.remove(key)
                self._ended.pop(key, None)
                self._new.append(self._running.pop(key))
            else:
                outcomes[key] = Outcome("failed", _reason(job))
        for key in outcomes:
            self._running.pop(key, None)
            self._ended.pop(key, None)
            self._gpu_of.pop(key, None)
        return outcomes

    def stop(self) -> None:
        """Stop inline jobs, and kill those that do not stop. Other jobs continue; the same command finds them."""
        if not self._inline:
            return
        self._close_pipe()
        end = time.monotonic() + STOP_GRACE_S + 5
        own = [latest_job(job.folder) for key, job in self._running.items() if key not in self._adopted]
        for record in filter(None, own):
            if not wait_for_end(record, end - time.monotonic()):
                SCHEDULERS[record.cluster].kill(record)
        self._running.clear()

    def _submit(self) -> dict[str, Outcome]:
        new, self._new = self._new, []
        if not self._inline and len(new) > 1:
            # A job that cannot be submitted must not prevent the others, which are then submitted one by one.
            with contextlib.suppress(UserError):
                self._send(new)
                return {}
        outcomes = {}
        for job in new:
            try:
                self._send([job])
            except (UserError, JobError) as error:
                outcomes[job.key] = Outcome("failed", str(error))
        return outcomes

    def _send(self, jobs: list[Job]) -> None:
        profile = self._profile
        if self._gpus:
            taken = list(self._gpu_of.values())
            gpu = min(self._gpus, key=taken.count)
            self._gpu_of[jobs[0].key] = gpu
            profile = profile.replace(
                "study", environment={**profile.environment, "CUDA_VISIBLE_DEVICES": gpu}
            )
        submit_many(
            [job.config for job in jobs],
            cluster=self._cluster,
            files=self._files,
            name=self._name,
            profile=profile,
            any_commit=self._any_commit,
            entry=ENTRY,
            attached=self._attached,
        )
        self._running.update({job.key: job for job in jobs})

    def _look(self) -> list[tuple[str, Job]]:
        """Jobs that have ended."""
        jobs = list(self._running.items())
        if self._cluster == "local":
            return [(key, job) for key, job in jobs if not _is_alive(job)]
        now = time.monotonic()
        found = []
        if now - self._looked >= _LOOK_S:
            self._looked = now
            found = [(key, job) for key, job in jobs if job.is_done()]
        if jobs and now - self._asked >= _SLURM_ASK_S:
            self._asked = now
            self._next = (self._next + 1) % len(jobs)
            key, job = jobs[self._next]
            if _is_alive(job):
                self._ended.pop(key, None)
            elif now - self._ended.setdefault(key, now) >= _SHARED_DISK_S:
                found.append((key, job))
        return found


def _is_alive(job: Job) -> bool:
    """Whether a job waits or runs, or a scheduler that does not answer has not said otherwise."""
    record = latest_job(job.folder)
    return record is not None and SCHEDULERS[record.cluster].state(record).phase != "ended"


def _reason(job: Job) -> str:
    """Why a job failed: the error that its run recorded, or that its log ends with."""
    if error := str(RunFolder.load(job.folder).record.get("error") or ""):
        return error
    record = latest_job(job.folder)
    log = record.log(job.folder) if record is not None else job.folder / JOBS
    with contextlib.suppress(OSError):
        last = log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
        if last.startswith("error: "):
            return last.removeprefix("error: ")
    return f"its job crashed or was killed; see {log}"

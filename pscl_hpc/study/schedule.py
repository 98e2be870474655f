"""Runs jobs that depend on each other, a few at a time; a failed job does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.study.plan import Job

POLL_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: Literal["done", "failed", "skipped"]
    """skipped: not started because its pretraining failed."""
    reason: str = ""


class Executor(Protocol):
    """Where jobs run."""

    def start(self, job: Job) -> None:
        """Start a job."""

    def poll(self) -> dict[str, Outcome]:
        """Jobs that have ended since the last call, by key."""

    def stop(self) -> None:
        """End the running jobs, unless they are to outlive the study's command."""


class Observer(Protocol):
    """Is told about all jobs."""

    def started(self, job: Job) -> None:
        """A job has started."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended or will not start."""

    def tick(self) -> None:
        """Called in every round."""


def run_jobs(
    jobs: Iterable[Job],
    done: Iterable[str],
    executor: Executor,
    limit: int,
    observer: Observer,
    prepare: Callable[[Job], Job] = lambda job: job,
) -> dict[str, Outcome]:
    """Run jobs in their order, each as soon as its pretraining is done and there is a free place.

    Args:
        jobs: The jobs to run.
        done: Keys of jobs that are done already.
        executor: Where they run.
        limit: Jobs at a time.
        observer: Is told about all of them.
        prepare: Applied to each job before its start; its errors are failures of the job.

    Returns:
        The outcome of every job, by key.

    Raises:
        ValueError: a job needs one that is neither done nor among ``jobs``.
    """
    waiting = {job.key: job for job in jobs}
    before = {key: Outcome("done") for key in done}
    if any(job.needs and job.needs not in waiting and job.needs not in before for job in waiting.values()):
        raise ValueError("a job needs another one that is not run")
    running: dict[str, Job] = {}
    outcomes: dict[str, Outcome] = {}

    def settle(job: Job, outcome: Outcome) -> None:
        outcomes[job.key] = outcome
        observer.ended(job, outcome)

    try:
        while waiting or running:
            for key, outcome in executor.poll().items():
                settle(running.pop(key), outcome)
            for job in list(waiting.values()):
                needed = before.get(job.needs) or outcomes.get(job.needs)
                if needed is not None and needed.state != "done":
                    del waiting[job.key]
                    settle(job, Outcome("skipped", f"its pretraining failed: {needed.reason}"))
                elif len(running) < limit and (not job.needs or needed is not None):
                    del waiting[job.key]
                    observer.started(job)
                    try:
                        executor.start(prepare(job))
                    except (UserError, JobError, OSError) as error:
                        settle(job, Outcome("failed", str(error) or type(error).__name__))
                    else:
                        running[job.key] = job
            observer.tick()
            if running:
                time.sleep(POLL_S)
    except BaseException:
        executor.stop()
        raise
    return outcomes

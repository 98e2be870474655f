"""Running jobs that depend on each other, a few at a time; one that fails does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.study.plan import Job

POLL_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: Literal["done", "failed", "skipped"]
    """skipped: not begun, as what it needs failed."""
    reason: str = ""


class Executor(Protocol):
    """Where jobs run."""

    def start(self, job: Job) -> None:
        """Begin a job."""

    def poll(self) -> dict[str, Outcome]:
        """Jobs that have ended since the last call, by key."""

    def stop(self) -> None:
        """End what runs, where jobs end with the study."""


class Observer(Protocol):
    """Who watches."""

    def started(self, job: Job) -> None:
        """A job has begun."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended or will not begin."""

    def tick(self) -> None:
        """Time has passed."""


def run_jobs(
    jobs: Iterable[Job], done: Iterable[str], executor: Executor, limit: int, observer: Observer
) -> dict[str, Outcome]:
    """Run jobs in their order, each as soon as what it needs is done and a place is free.

    Args:
        jobs: What is to be done.
        done: Keys of jobs that are done already.
        executor: Where they run.
        limit: Jobs at a time.
        observer: Told of everything.

    Returns:
        The outcome of every job, by key.
    """
    waiting = {job.key: job for job in jobs}
    ready = set(done)
    running: dict[str, Job] = {}
    outcomes: dict[str, Outcome] = {}

    def settle(job: Job, outcome: Outcome) -> None:
        outcomes[job.key] = outcome
        if outcome.state == "done":
            ready.add(job.key)
        observer.ended(job, outcome)

    try:
        while waiting or running:
            for key, outcome in executor.poll().items():
                settle(running.pop(key), outcome)
            for job in list(waiting.values()):
                blocked = outcomes.get(job.needs)
                if blocked is not None and blocked.state != "done":
                    del waiting[job.key]
                    settle(job, Outcome("skipped", f"its pretraining failed: {blocked.reason}"))
                elif len(running) < limit and (not job.needs or job.needs in ready):
                    del waiting[job.key]
                    observer.started(job)
                    try:
                        executor.start(job)
                    except (UserError, JobError, OSError) as error:
                        settle(job, Outcome("failed", str(error) or type(error).__name__))
                    else:
                        running[job.key] = job
            if (
                waiting
                and not running
                and not any(_can_begin(job, ready, outcomes) for job in waiting.values())
            ):
                raise ValueError(f"jobs need others that nobody runs: {sorted(waiting)}")
            observer.tick()
            if running:
                time.sleep(POLL_S)
    except BaseException:
        executor.stop()
        raise
    return outcomes


def _can_begin(job: Job, ready: set[str], outcomes: dict[str, Outcome]) -> bool:
    return not job.needs or job.needs in ready or job.needs in outcomes

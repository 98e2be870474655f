"""Signals that ask a job to stop, and what happens once it has.

A handler only notes why (:mod:`pscl_hpc.training.stopping`); the stage stops at a step boundary, all ranks at the
same one, with its state saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from pscl_hpc.errors import EXIT_STOPPED
from pscl_hpc.training.stopping import request_stop, stop_reason

CANCELLED = "cancelled"
NOTICE = "preempted or near the time limit"
TERMINATED = "terminated"
_ANSWER_S = 30


@contextlib.contextmanager
def listen() -> Iterator[Callable[[int, Any], None]]:
    """While inside, signals ask for a stop. Gives submitit's own handler, which requeues the job when called."""
    requeue = signal.getsignal(signal.SIGUSR2)
    assert callable(requeue)

    def interrupted(number: int, frame: object) -> None:
        if (stop_reason() or "").startswith(CANCELLED):
            # Not an exception: it could surface inside a collective, whose peers would wait.
            os._exit(EXIT_STOPPED)
        request_stop(CANCELLED)

    handlers: dict[int, Callable[[int, Any], None]] = {
        signal.SIGUSR2: lambda number, frame: request_stop(NOTICE),
        signal.SIGTERM: lambda number, frame: request_stop(TERMINATED),
        # A job submitted from a background shell inherits an ignored SIGINT, by which `jobs cancel` asks it to stop.
        signal.SIGINT: interrupted,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield requeue
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def slurm_ends_it() -> bool:
    """Whether Slurm ends this job by itself (cancelled, requeued): it must not be requeued then."""
    job = os.environ.get("SLURM_JOB_ID", "")
    try:
        shown = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", job],
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "JobState=RUNNING" not in shown

"""Asking what became of a job, and asking it to stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.launch.registry import JobRecord

Phase = Literal["pending", "running", "ended", "unknown"]
SLURM_WAIT_S = 30
_SLURM_PENDING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_SLURM_RUNNING = {
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
}


@dataclass(frozen=True)
class JobState:
    """What a scheduler says about a job."""

    phase: Phase
    detail: str = ""
    """Its own words, for example Slurm's state and reason."""


class Scheduler(Protocol):
    """One kind of cluster."""

    def state(self, job: JobRecord) -> JobState:
        """What became of the job."""

    def interrupt(self, job: JobRecord) -> None:
        """Ask the job to stop; one that has not begun is taken off the queue."""

    def kill(self, job: JobRecord) -> None:
        """End the job without asking."""

    def notify(self, job: JobRecord) -> None:
        """Tell a running job to save and to go on in a new start, as before a preemption."""

    def restart(self, job: JobRecord) -> None:
        """Start a running job again without asking it."""


class LocalScheduler:
    """Jobs that are processes of this machine."""

    def state(self, job: JobRecord) -> JobState:
        """Whether the process that watches the job lives."""
        if job.host != socket.gethostname():
            return JobState("unknown", f"a process of {job.host}")
        return JobState("running" if _process_start(int(job.job)) == job.started else "ended")

    def interrupt(self, job: JobRecord) -> None:
        """SIGINT to the watching process, which hands it on."""
        self._check_host(job)
        if self.state(job).phase == "running":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job), signal.SIGINT)

    def kill(self, job: JobRecord) -> None:
        """SIGKILL to all processes of the job's session."""
        self._check_host(job)
        if self.state(job).phase == "running":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(job.job), signal.SIGKILL)

    def notify(self, job: JobRecord) -> None:
        """SIGUSR2 to the watching process, which hands it on."""
        self._check_host(job)
        if self.state(job).phase == "running":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job), signal.SIGUSR2)

    def restart(self, job: JobRecord) -> None:
        """A local job goes on by itself once it was told."""
        raise JobError(f"job {job.job} does not stop; cancel it and submit it again")

    def _check_host(self, job: JobRecord) -> None:
        if job.host != socket.gethostname():
            raise UserError(f"job {job.job} is a process of {job.host}; cancel it there")


class SlurmScheduler:
    """Jobs of a Slurm cluster."""

    def state(self, job: JobRecord) -> JobState:
        """The queue knows live jobs, the accounting those that ended."""
        live = _slurm("squeue", "--noheader", "--jobs", job.job, "--states", "all", "--format", "%T|%r|%N")
        words = live.splitlines()[0].split("|") if live else []
        if not words:
            past = _slurm("sacct", "-X", "-n", "-P", "-j", job.job, "-o", "State,ExitCode,NodeList")
            words = past.splitlines()[-1].split("|") if past else []
        if not words:
            return JobState("unknown", "neither squeue nor sacct knows it")
        name = words[0].split()[0]
        detail = " ".join(word for word in words if word and word != "None")
        if name in _SLURM_PENDING:
            return JobState("pending", detail)
        return JobState("running" if name in _SLURM_RUNNING else "ended", detail)

    def interrupt(self, job: JobRecord) -> None:
        """SIGINT to the tasks, which can then note that they were stopped; scancel where nothing runs yet."""
        running = self.state(job).phase == "running"
        self._command("scancel", *(["--signal=INT"] if running else []), job.job)

    def kill(self, job: JobRecord) -> None:
        """Slurm's own end: SIGTERM, and SIGKILL after KillWait."""
        self._command("scancel", job.job)

    def notify(self, job: JobRecord) -> None:
        """The signal of a preemption to the tasks, who requeue their job when they have saved."""
        self._command("scancel", "--signal=USR2", job.job)

    def restart(self, job: JobRecord) -> None:
        """Slurm's own requeue: SIGTERM, and SIGKILL after KillWait."""
        self._command("scontrol", "requeue", job.job)

    def _command(self, name: str, *arguments: str) -> None:
        if shutil.which(name) is None:
            raise UserError(f"{name} is not on this machine; do this where the job was submitted")
        done = subprocess.run(
            [name, *arguments],
            capture_output=True,
            text=True,
            timeout=SLURM_WAIT_S,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise JobError(
                f"{name} failed: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}"
            )


SCHEDULERS: dict[str, Scheduler] = {"local": LocalScheduler(), "slurm": SlurmScheduler()}


def process_start(pid: int) -> str:
    """A text that no other process with this id has: the kernel's start time and boot.

    Raises:
        JobError: when there is no such process.
    """
    start = _process_start(pid)
    if start is None:
        raise JobError(f"process {pid} ended at once; see controller.log in the run's folder jobs")
    return start


def wait_for_end(job: JobRecord, seconds: float) -> bool:
    """Wait until a job has ended, at most ``seconds``; whether it has."""
    end = time.monotonic() + seconds
    scheduler = SCHEDULERS[job.cluster]
    while scheduler.state(job).phase in ("pending", "running"):
        if time.monotonic() > end:
            return False
        time.sleep(0.2 if job.cluster == "local" else 1.0)
    return True


def _process_start(pid: int) -> str | None:
    """None for a process that is gone or a zombie."""
    try:
        # The name of the program, in parentheses, may hold blanks; what follows it does not.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    state, start = fields[0], fields[19]
    return None if state in "ZX" else f"{start}@{boot}"


def _slurm(*command: str) -> str:
    """What a Slurm command prints, empty when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SLURM_WAIT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

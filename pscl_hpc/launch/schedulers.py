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
"""unknown: nothing can be said, because Slurm does not answer or the process is another machine's."""
SLURM_WAIT_S = 30
SILENCE_S = 300.0
"""How long Slurm may leave a question about a job unanswered, as a busy controller does, before that is an error."""
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
        if not words and live is None:
            return JobState("unknown", "Slurm does not answer")
        if not words:
            return JobState("ended", "neither squeue nor sacct knows it")
        name = words[0].split()[0]
        detail = " ".join(word for word in words if word and word != "None")
        if name in _SLURM_PENDING:
            return JobState("pending", detail)
        return JobState("running" if name in _SLURM_RUNNING else "ended", detail)

    def interrupt(self, job: JobRecord) -> None:
        """SIGINT to the tasks, which can then note that they were stopped; scancel where nothing runs yet."""
        running = self.state(job).phase in ("running", "unknown")
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
        try:
            done = subprocess.run(
                [name, *arguments],
                capture_output=True,
                text=True,
                timeout=SLURM_WAIT_S,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise JobError(f"{name} got no answer from Slurm in {SLURM_WAIT_S} s; try again later") from None
        if done.returncode:
            raise JobError(
                f"{name} failed: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}"
            )


SCHEDULERS: dict[str, Scheduler] = {"local": LocalScheduler(), "slurm": SlurmScheduler()}


class Watch:
    """A job that is asked about again and again, by somebody who does not take silence for its end."""

    def __init__(self, job: JobRecord) -> None:
        self.phase: Phase = "unknown"
        """The last answer."""
        self._job = job
        self._heard = time.monotonic()

    def alive(self) -> bool:
        """Ask whether the job waits or runs; True also while Slurm has not answered for less than ``SILENCE_S``.

        False where no answer can come: for a process of another machine, or without Slurm's commands.

        Raises:
            JobError: when Slurm has not answered for that long.
        """
        self.phase = SCHEDULERS[self._job.cluster].state(self._job).phase
        if self.phase != "unknown":
            self._heard = time.monotonic()
            return self.phase != "ended"
        if self._job.cluster == "local" or shutil.which("squeue") is None:
            return False
        if time.monotonic() - self._heard > SILENCE_S:
            raise JobError(
                f"Slurm has not said for {SILENCE_S:.0f} s what became of job {self._job.job}; try again when squeue "
                "answers"
            )
        return True


def known_phase(job: JobRecord) -> Phase:
    """The phase of a job, asked for until Slurm answers; ``unknown`` where no answer can come.

    Raises:
        JobError: as :meth:`Watch.alive`.
    """
    watch = Watch(job)
    while watch.alive() and watch.phase == "unknown":
        time.sleep(1.0)
    return watch.phase


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
    """Wait until a job has ended, at most ``seconds`` and until Slurm answers; whether it has.

    Raises:
        JobError: as :meth:`Watch.alive`.
    """
    end = time.monotonic() + seconds
    watch = Watch(job)
    while watch.alive():
        if time.monotonic() > end and watch.phase != "unknown":
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


def _slurm(*command: str) -> str | None:
    """What a Slurm command prints, empty for a job that it does not know; None when there is no answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SLURM_WAIT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 or "Invalid job id" in done.stderr else None

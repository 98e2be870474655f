"""The state of a job, and signals to it: on this machine and on Slurm."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.launch.records import JobRecord

Phase = Literal["pending", "running", "ended", "unknown"]
"""unknown: Slurm does not answer, or the job is a process of another machine."""
SLURM_TIMEOUT_S = 30
SILENCE_S = 300.0
"""Seconds for which Slurm may leave a question about a job unanswered, as a busy controller does."""
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

_QUEUE_FIELDS = "JobArrayID:|,State:|,Reason:|,NodeList:|,RestartCnt:|,exit_code:|"


@dataclass(frozen=True)
class JobState:
    """A scheduler's answer about a job."""

    phase: Phase
    detail: str = ""
    """Its own words, for example Slurm's state and reason."""
    code: int | None = None
    """Exit code of a job that has ended, if it is known."""
    restart: int | None = None
    """How often the job was restarted, if it is known."""


class LocalScheduler:
    """Jobs that are processes of this machine. Their ids are those of the controller processes."""

    def state(self, job: JobRecord) -> JobState:
        """Whether the controller process is running."""
        if job.host != socket.gethostname():
            return JobState("unknown", f"a process of {job.host}")
        return JobState("running" if _process_start(int(job.job)) == job.started else "ended")

    def interrupt(self, job: JobRecord) -> None:
        """SIGINT to the controller, which passes it on."""
        self._signal(job, os.kill, signal.SIGINT)

    def kill(self, job: JobRecord) -> None:
        """SIGKILL to all processes of the job's session."""
        self._signal(job, os.killpg, signal.SIGKILL)

    def preempt(self, job: JobRecord) -> None:
        """SIGUSR2 to the controller, which passes it on."""
        self._signal(job, os.kill, signal.SIGUSR2)

    def restart(self, job: JobRecord) -> None:
        """Not possible: a local job restarts by itself when it has saved."""
        raise JobError(f"job {job.job} does not stop; cancel it and submit it again")

    def _signal(self, job: JobRecord, send: Callable[[int, int], None], number: int) -> None:
        if job.host != socket.gethostname():
            raise UserError(f"job {job.job} is a process of {job.host}; cancel it there")
        if self.state(job).phase == "running":
            with contextlib.suppress(ProcessLookupError):
                send(int(job.job), number)


class SlurmScheduler:
    """Jobs of a Slurm cluster."""

    def state(self, job: JobRecord) -> JobState:
        """The state from the queue, or from the accounting for a job that has ended."""
        return self.states([job.job])[job.job]

    def states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        """The states of many jobs, with one question to the queue and one to the accounting."""
        if not jobs:
            return {}
        asked = ",".join(jobs)
        live = _slurm(
            "squeue", "--noheader", "--array", "--jobs", asked, "--states", "all", "--Format", _QUEUE_FIELDS
        )
        found = dict(filter(None, map(_from_queue, (live or "").splitlines())))
        if missing := [job for job in jobs if job not in found]:
            fields = "JobID,State,ExitCode,NodeList"
            past = _slurm("sacct", "-X", "-n", "-P", "-j", ",".join(missing), "-o", fields) or ""
            for name, state in filter(None, map(_from_accounting, past.splitlines())):
                if name in missing:
                    found[name] = state
        silent = JobState("unknown", "Slurm does not answer")
        unknown = silent if live is None else JobState("ended", "neither squeue nor sacct knows it")
        return {job: found.get(job, unknown) for job in jobs}

    def interrupt(self, job: JobRecord) -> None:
        """SIGINT to the tasks, which then record that they were stopped; scancel if the job is pending."""
        running = self.state(job).phase in ("running", "unknown")
        self._command("scancel", *(["--signal=INT"] if running else []), job.job)

    def kill(self, job: JobRecord) -> None:
        """Slurm's cancellation: SIGTERM, and SIGKILL after KillWait."""
        self._command("scancel", job.job)

    def preempt(self, job: JobRecord) -> None:
        """SIGUSR2 to the tasks, which save and requeue their job."""
        self._command("scancel", "--signal=USR2", job.job)

    def restart(self, job: JobRecord) -> None:
        """Slurm's requeue: SIGTERM, and SIGKILL after KillWait."""
        self._command("scontrol", "requeue", job.job)

    def _command(self, name: str, *arguments: str) -> None:
        if shutil.which(name) is None:
            raise UserError(f"{name} is not on this machine; run the command where the job was submitted")
        done = run_slurm(name, *arguments)
        if done is None:
            raise JobError(f"{name} got no answer from Slurm in {SLURM_TIMEOUT_S} s; try again later")
        if done.returncode:
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise JobError(f"{name} failed: {reason}")


SCHEDULERS: dict[str, LocalScheduler | SlurmScheduler] = {
    "local": LocalScheduler(),
    "slurm": SlurmScheduler(),
}


def states_of(jobs: Iterable[JobRecord]) -> dict[tuple[str, str], JobState]:
    """The states of many jobs by cluster and id; Slurm is asked once."""
    found: dict[tuple[str, str], JobState] = {}
    slurm = []
    for job in jobs:
        if job.cluster == "slurm":
            slurm.append(job.job)
        else:
            found[job.cluster, job.job] = SCHEDULERS[job.cluster].state(job)
    return found | {("slurm", job): state for job, state in SlurmScheduler().states(slurm).items()}


def run_slurm(*command: str, timeout: float = SLURM_TIMEOUT_S) -> subprocess.CompletedProcess[str] | None:
    """Run a Slurm command; None if it is not installed or does not answer within ``timeout`` seconds."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


class Watch:
    """Polls a job; that Slurm does not answer is not taken for the job's end."""

    def __init__(self, job: JobRecord) -> None:
        self.phase: Phase = "unknown"
        """The last answer."""
        self._job = job
        self._heard = time.monotonic()

    def alive(self) -> bool:
        """Ask whether the job is pending or running; also True while Slurm has been silent for less than ``SILENCE_S``.

        False if no answer can come: for a process of another machine, or without Slurm's commands.

        Raises:
            JobError: Slurm has been silent for longer.
        """
        self.phase = SCHEDULERS[self._job.cluster].state(self._job).phase
        if self.phase != "unknown":
            self._heard = time.monotonic()
            return self.phase != "ended"
        if self._job.cluster == "local" or shutil.which("squeue") is None:
            return False
        if time.monotonic() - self._heard > SILENCE_S:
            raise JobError(
                f"Slurm has not reported the state of job {self._job.job} for {SILENCE_S:.0f} s; try again when squeue "
                "answers"
            )
        return True


def known_phase(job: JobRecord) -> Phase:
    """The phase of a job, polled until Slurm answers; ``unknown`` if no answer can come.

    Raises:
        JobError: as :meth:`Watch.alive`.
    """
    watch = Watch(job)
    while watch.alive() and watch.phase == "unknown":
        time.sleep(1.0)
    return watch.phase


def wait_for_end(job: JobRecord, seconds: float) -> bool:
    """Wait until a job has ended, for ``seconds`` at most (longer while Slurm is silent); whether it has ended.

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


def process_start(pid: int) -> str:
    """Start time and boot id of a process, which distinguish it from any other process with the same id.

    Raises:
        JobError: there is no such process.
    """
    start = _process_start(pid)
    if start is None:
        raise JobError(f"process {pid} ended at once; see controller.log in the run's folder jobs")
    return start


def _process_start(pid: int) -> str | None:
    """None if the process does not exist or is a zombie."""
    try:
        # The program's name, in parentheses, may contain spaces; the fields after it do not.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    state, start = fields[0], fields[19]
    return None if state in "ZX" else f"{start}@{boot}"


def _from_queue(line: str) -> tuple[str, JobState] | None:
    words = line.strip().split("|")
    if len(words) < 6:
        return None
    job, name, reason, nodes, restarts, status = words[:6]
    state = _state_of(name, [name, reason, nodes])
    # Slurm gives the wait status here: the exit code, or the number of the signal.
    code = int(status) >> 8 if state.phase == "ended" and status.isdigit() else None
    return job, replace(state, code=code, restart=int(restarts) if restarts.isdigit() else None)


def _from_accounting(line: str) -> tuple[str, JobState] | None:
    words = line.strip().split("|")
    if len(words) < 4 or not words[1]:
        return None
    job, name, exit_code, nodes = words[:4]
    code = exit_code.partition(":")[0]
    state = _state_of(name.split()[0], [name, exit_code, nodes])
    return job, replace(state, code=int(code) if code.isdigit() and state.phase == "ended" else None)


def _state_of(name: str, words: Sequence[str]) -> JobState:
    detail = " ".join(word for word in words if word and word != "None")
    if name in _SLURM_PENDING:
        return JobState("pending", detail)
    return JobState("running" if name in _SLURM_RUNNING else "ended", detail)


def _slurm(*command: str) -> str | None:
    """The output of a Slurm command, empty for an unknown job; None if Slurm does not answer."""
    done = run_slurm(*command)
    if done is None or (done.returncode and "Invalid job id" not in done.stderr):
        return None
    return done.stdout.strip()

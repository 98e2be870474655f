"""The code that a job runs: the stage of a run folder, as the console command would run it.

A job that is restarted after a node failure starts from the pickle with which it was submitted. So the callable only
holds the run folder and what was requested; the step to resume from is found in the folder.

Signals only set a flag (:mod:`pscl_hpc.training.stopping`). The ranks agree on it at a step boundary, save and stop.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from pscl_hpc.archive.staging import stage_archive
from pscl_hpc.config import load_config
from pscl_hpc.errors import EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED, EXIT_TERMINATED, JobError, UserError
from pscl_hpc.files import is_no_space
from pscl_hpc.launch.ends import (
    BAD_NODE,
    CANCELLED,
    EXIT_FULL,
    FULL,
    REFUSED,
    REQUEUE,
    STOPPED,
    last_end,
    note_run,
    read_failures,
    write_end,
)
from pscl_hpc.launch.node_check import BadNodeError, check_node
from pscl_hpc.launch.schedulers import run_slurm
from pscl_hpc.launch.task import Task
from pscl_hpc.runs import RunFolder, job_start
from pscl_hpc.runs.lock import is_locked
from pscl_hpc.runs.places import CONFIG_FILE
from pscl_hpc.training.device import own_gpus, unusable_reason
from pscl_hpc.training.flight_recorder import record_communication
from pscl_hpc.training.stopping import StopRequested, clear_stop, request_stop, stop_reason

STAGES = {
    "pretrain": "pscl_hpc.pretraining:pretrain",
    "finetune": "pscl_hpc.segmentation:finetune",
    "classifier": "pscl_hpc.segmentation:train_classifier",
}
"""The function of each stage, ``module:function``; it takes the configuration."""
PREEMPTED = "preempted or near the time limit"
TERMINATED = "terminated"
_PACKAGES = ("pscl_hpc", "pscl_kernels")


@dataclass(frozen=True)
class StageJob:
    """Starts or resumes the run in a folder."""

    run: str
    """Absolute path of the run folder, which holds the resolved configuration."""
    entry: str
    """``module:function`` of the stage."""
    files: str
    """Absolute path of the folder of the job's own files."""
    nodes: int = 1
    tasks_per_node: int = 1
    gpus: bool = False
    """Whether each task has a GPU."""
    stage: str | None = None
    """Folder on the node's local disk from which the archive is read."""
    check_nodes: bool = True
    """Whether each node is checked before its ranks start."""
    debug_nccl: bool = False
    """Whether the communication of the ranks is recorded."""
    source: str = ""
    """Hash of the submitted code; empty to accept any."""
    commit: str = ""

    def __call__(self) -> None:
        """Run the stage; a failure ends the process with the exit code of the console command."""
        task = Task.find(submitit.JobEnvironment())
        print(task.first_line(), flush=True)
        clear_stop()
        with listen() as requeue:
            try:
                self._prepare(task)
                if self.check_nodes and task.local_rank == 0:
                    for sentence in check_node(task.node, Path(self.run), self.tasks_per_node):
                        print(sentence, file=sys.stderr, flush=True)
                config = load_config(Path(self.run) / CONFIG_FILE).model_copy(update={"run": self.run})
                if not self.gpus and config.runtime.device != "cpu" and (given := own_gpus()):
                    _check_gpu(task, f"was given GPUs ({given})")
                if self.stage is not None:
                    stage_archive(Path(config.data.archive), Path(self.stage))
                module, _, function = self.entry.partition(":")
                getattr(importlib.import_module(module), function)(config)
            except StopRequested as stop:
                self._end_after_stop(stop.reason, task, requeue)
            except Exception as error:
                self._end_after_error(error, task)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit after a preemption or a time limit: run the same again."""
        return DelayedSubmission(replace(self))

    def _prepare(self, task: Task) -> None:
        """Compare the code, ranks and GPUs with those requested, and set the ranks' environment."""
        task.export(self.tasks_per_node)
        if self.debug_nccl:
            record_communication(Path(self.run), f"{task.job}.{task.restart}")
        if task.rank == 0:
            note_run(Path(self.files), task.job, Path(self.run))
            keep_last_end(RunFolder.load(self.run), Path(self.files), task.job, task.restart - 1)
        check_source(self.source, self.commit)
        task.check(self.nodes, self.tasks_per_node)
        if self.gpus:
            _check_gpu(task, "requested a GPU for each task")

    def _end_after_stop(self, reason: str, task: Task, requeue: Callable[[int, Any], None]) -> NoReturn:
        """End the process once all ranks have saved and stopped; rank 0 requeues the job after a preemption."""
        if reason.startswith(CANCELLED):
            self._write_status(task, STOPPED)
            _exit("stopped on request", EXIT_STOPPED)
        slurm = submitit.JobEnvironment().cluster == "slurm"
        if slurm_ends_job() if slurm else not reason.startswith(PREEMPTED):
            _exit(f"stopped: {reason}", EXIT_TERMINATED)
        if task.rank:
            _exit(f"stopped: {reason}; rank 0 requeues the job", 0)
        self._write_status(task, REQUEUE)
        # A half-written file of a killed attempt would make submitit fail here.
        for left in Path(self.files).glob(f"{task.job}_*.save_tmp"):
            left.unlink(missing_ok=True)
        try:
            # On Slurm this calls `scontrol requeue`. Where the command is missing, as in a container, the batch script
            # requeues the job.
            with contextlib.suppress(OSError):
                requeue(signal.SIGUSR2, None)
        except UncompletedJobError as error:
            text = f"{reason}, and not requeued again: {error}"
            self._write_status(task, REFUSED, text)
            _exit(f"error: {text}", EXIT_FAILED)
        _exit(f"stopped: {reason}", EXIT_FAILED)

    def _end_after_error(self, error: Exception, task: Task) -> NoReturn:
        """Record the error and end the process; the job is not restarted if that would not help."""
        known = isinstance(error, UserError | JobError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        if not known:
            traceback.print_exc()
        self._record(text)
        if is_no_space(error):
            self._write_status(task, FULL, text)
            _exit(f"error: {text}", EXIT_FULL)
        if isinstance(error, BadNodeError):
            write_end(Path(self.files), task.job, task.restart, BAD_NODE, text, error.node)
        if isinstance(error, UserError):
            self._write_status(task, REFUSED, text)
            _exit(f"error: {text}", EXIT_INPUT)
        _exit(f"error: {text}", EXIT_FAILED)

    def _write_status(self, task: Task, status: str, reason: str = "") -> None:
        """Write the status file that the batch script reads after this start of the job."""
        write_end(Path(self.files), task.job, task.restart, status, reason)

    def _record(self, reason: str) -> None:
        """Record a failure that the run itself could not record, because it had not begun in this start of the job.

        Not if another process is working on the run.
        """
        # A full disk must not hide the error; the end file or Slurm has it then.
        with contextlib.suppress(UserError, JobError):
            folder = RunFolder.load(self.run)
            start = job_start()
            begun = bool(start) and bool(folder.attempts) and folder.attempts[-1].get("job") == start
            recorded = folder.record.get("status") == "failed" and folder.record.get("start") == start
            if not (folder.done or begun or recorded or is_locked(folder.path)):
                folder.update(status="failed", error=reason, start=start)


@contextlib.contextmanager
def listen() -> Iterator[Callable[[int, Any], None]]:
    """Let signals request a stop. Yields submitit's own handler, which requeues the job when called."""
    requeue = signal.getsignal(signal.SIGUSR2)
    assert callable(requeue)

    def interrupted(number: int, frame: object) -> None:
        if (stop_reason() or "").startswith(CANCELLED):
            # Not an exception: it could be raised inside a collective, and the other ranks would wait for this one.
            os._exit(EXIT_STOPPED)
        request_stop(CANCELLED)

    handlers: dict[int, Callable[[int, Any], None]] = {
        signal.SIGUSR2: lambda number, frame: request_stop(PREEMPTED),
        signal.SIGTERM: lambda number, frame: request_stop(TERMINATED),
        # Set explicitly: a job submitted from a background shell inherits an ignored SIGINT.
        signal.SIGINT: interrupted,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield requeue
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def slurm_ends_job() -> bool:
    """Whether Slurm itself is ending this job (cancelled, requeued); then it must not be requeued."""
    shown = run_slurm("scontrol", "show", "job", "--oneliner", os.environ.get("SLURM_JOB_ID", ""))
    return shown is not None and "JobState=RUNNING" not in shown.stdout


def source_hash() -> str:
    """SHA-256 over all Python files of the installed packages, tracked by git or not."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            root = Path(place)
            for path in sorted(root.rglob("*.py")):
                data = path.read_bytes()
                digest.update(f"{package}/{path.relative_to(root).as_posix()} {len(data)}\n".encode())
                digest.update(data)
    return digest.hexdigest()


def check_source(expected: str, commit: str) -> None:
    """Check that the job runs the code that was submitted.

    Args:
        expected: :func:`source_hash` at submission; empty to accept any code.
        commit: the commit at submission, for the message.

    Raises:
        UserError: a file was edited, added or removed since.
    """
    if expected and source_hash() != expected:
        then = f" (commit {commit[:12]}{'+changes' if commit.endswith('+changes') else ''})" if commit else ""
        raise UserError(
            f"the code of pscl_hpc has changed since this job was submitted{then}; restore it, submit again, or submit "
            "with --any-commit"
        )


def keep_last_end(folder: RunFolder, files: Path | None, job: str = "", restart: int | None = None) -> None:
    """Record in the newest attempt how it ended, before the next attempt replaces the run's status.

    Args:
        folder: the run.
        files: the folder of its job's files; None without a job.
        job: id of the job.
        restart: the start of the job to which the attempt belongs; None for the last failed one.
    """
    failures = read_failures(files, job) if files is not None else []
    known = [each.text() for each in failures if restart in (None, each.restart)]
    if not known and files is not None and restart is None:
        known = [reason for _, _, reason in [last_end(files, job)] if reason]
    folder.keep_last_end(known[-1] if known else "")


def _check_gpu(task: Task, why: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"rank {task.rank} on {task.node}: the job {why}, but torch finds none ({unusable_reason()}); check the "
            "driver, torch's build and the profile's setup"
        )


def _exit(message: str, code: int) -> NoReturn:
    # A log on a full disk must not change the exit code.
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    # SystemExit passes through submitit, which would pickle any other exception and print a traceback.
    raise SystemExit(code) from None

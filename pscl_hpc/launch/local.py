"""Jobs on this machine, on submitit's local executor: they outlive the shell or end with it, and stop gracefully.

Run as ``python -m pscl_hpc.launch.local FOLDER``, this module is the controller process that watches the tasks of one
job; its process id is the job id. SIGINT asks it to stop. With the argument ``attached`` it also stops when its
standard input is closed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller, LocalExecutor, LocalJob

from pscl_hpc.errors import EXIT_TERMINATED
from pscl_hpc.launch.ends import (
    EXIT_FULL,
    FULL,
    FULL_REASON,
    REFUSED,
    STOPPED,
    Failure,
    add_failure,
    newest_checkpoint,
    read_end,
    read_failures,
    used_up,
    without_progress,
    write_end,
)
from pscl_hpc.launch.task import RESTARTS_LOCAL

STOP_GRACE_S = 60.0
"""Seconds that tasks have to stop before they are killed."""
MAX_STARTS = 1000
"""How often the tasks of one job are started at most."""
RETRIES = "PSCL_HPC_RETRIES"
"""Environment variable: how often a job with a failed rank is started again without a new checkpoint."""
NO_LIMIT_MIN = 60 * 24 * 365
"""Minutes that stand for no time limit."""
_ATTACHED = "attached"


class LocalProcessExecutor(LocalExecutor):
    """Starts each job's controller in a new session, without the streams of the submitting shell.

    Submitit's own local jobs end with the terminal, keep its pipes open, and see no GPU unless told so.

    Args:
        folder: of the jobs' files.
        attached: read end of a pipe; the jobs stop when the other end is closed, by the submitter or by its death. None
            for jobs that outlive the submitter.
    """

    def __init__(self, folder: Path, attached: int | None = None, **options: Any) -> None:
        super().__init__(folder, **options)
        self._attached = attached

    def _submit_command(self, command: str) -> LocalJob[Any]:
        tasks = int(self.parameters.get("tasks_per_node", 1))
        environment = {
            **os.environ,
            **self.parameters.get("environment", {}),
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(int(self.parameters["signal_delay_s"])),
            "SUBMITIT_LOCAL_TIMEOUT_S": str(int(60 * self.parameters["timeout_min"])),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
        }
        arguments = [str(self.folder), *([] if self._attached is None else [_ATTACHED])]
        with (Path(self.folder) / "controller.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pscl_hpc.launch.local", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL if self._attached is None else self._attached,
                stdout=log,
                stderr=log,
                # Neither Ctrl-C nor a closed terminal reaches the job.
                start_new_session=True,
            )
        return LocalJob(
            folder=self.folder, job_id=str(process.pid), process=process, tasks=list(range(tasks))
        )


class PatientController(Controller):
    """Watches the tasks of a job, and gives them time to stop where submitit kills them after one second.

    When they end it makes the decisions that the batch script makes on Slurm (:mod:`pscl_hpc.launch.batch_script`).
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._starts = 0
        self._asked_to_stop = False
        self._watching = False
        # Of an earlier process with the same id.
        for name in ("failures", "run", "*.end"):
            for left in folder.glob(f"{os.getpid()}.{name}"):
                left.unlink()
        signal.signal(signal.SIGUSR2, lambda number, frame: self._forward_signal(signal.SIGUSR2))
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, *_: object) -> None:
        # Not while tasks are started or stopped: one that is not yet in the list would be left running.
        self._asked_to_stop = True
        if self._watching:
            raise KeyboardInterrupt

    def start_tasks(self) -> None:
        """Start all tasks, with the number of restarts in their environment."""
        os.environ[RESTARTS_LOCAL] = str(self._starts)
        self._starts += 1
        super().start_tasks()

    def run(self, max_retry: int = MAX_STARTS) -> None:
        """Start the tasks until they succeed, end on purpose, or have failed more often than allowed."""
        allowed = int(os.environ[RETRIES])
        while self._starts < max_retry:
            try:
                if not self._asked_to_stop:
                    self.start_tasks()
                codes = self._watch()
            finally:
                self.kill_tasks()
            if LOCAL_REQUEUE_RETURN_CODE in codes:
                continue
            code = job_exit_code(codes)
            if code in (0, EXIT_TERMINATED, EXIT_FULL) or self._status() in (STOPPED, REFUSED, FULL):
                return
            if not self._try_again(code, allowed):
                return
            print(f"job {self.pid}: a rank ended with exit code {code}; restarting", flush=True)

    def _watch(self) -> Sequence[int | None]:
        """Wait for the tasks; their exit codes. Raises KeyboardInterrupt if the job is asked to stop, or was before."""
        self._watching = True
        if self._asked_to_stop:
            raise KeyboardInterrupt
        codes = self.wait()
        self._watching = False
        return codes

    def _try_again(self, code: int, allowed: int) -> bool:
        """Record a failure; False if the job is not to be started again, with the reason in its end file."""
        job = str(self.pid)
        failure = Failure(self._starts - 1, code, newest_checkpoint(self.folder, job))
        try:
            add_failure(self.folder, job, failure)
        except OSError as error:
            write_end(self.folder, job, failure.restart, FULL, FULL_REASON)
            with contextlib.suppress(OSError):
                print(f"job {job}: {error}; {FULL_REASON}", flush=True)
            return False
        count = without_progress(read_failures(self.folder, job))
        if count > allowed:
            write_end(self.folder, job, failure.restart, REFUSED, used_up(count, allowed, failure))
        return count <= allowed

    def _status(self) -> str:
        """The word that a task left about the end of this start of the job; empty without one."""
        return read_end(self.folder, str(self.pid), self._starts - 1)[0]

    def kill_tasks(self) -> None:
        """Ask the tasks to stop, kill those that do not, and close their logs."""
        self._watching = False
        self._forward_signal(signal.SIGINT)
        end = time.monotonic() + STOP_GRACE_S
        while any(task.poll() is None for task in self.tasks) and time.monotonic() < end:
            time.sleep(0.05)
        self._forward_signal(signal.SIGKILL)
        for task in self.tasks:
            task.wait()
        self.tasks = []
        for stream in {*self.stdouts, *self.stderrs}:
            stream.close()
        self.stdouts, self.stderrs = [], []


def job_exit_code(codes: Sequence[int | None]) -> int:
    """The exit code of a job, as a shell reports it; 0 if all tasks succeeded.

    Args:
        codes: of the tasks. Negative: killed by that signal. None: still running at the time limit, and killed for it.
    """
    killed = [signal.SIGKILL if code is None else -code for code in codes if code is None or code < 0]
    # If one task is killed, the others end as if they had been asked to; so the killed one decides.
    fatal = [number for number in killed if number != signal.SIGTERM]
    if fatal:
        return 128 + max(fatal)
    return max(128 - code if code < 0 else code for code in codes if code is not None)


def control(folder: Path, *, attached: bool) -> None:
    """Run the job that the environment describes, with its restarts, until it ends or is asked to stop."""
    try:
        controller = PatientController(folder)
        if attached:
            threading.Thread(target=_stop_with_submitter, daemon=True).start()
        controller.run()
    except KeyboardInterrupt:
        print(f"job {os.getpid()}: stopped on request", flush=True)


def _stop_with_submitter() -> None:
    # Not through sys.stdin: a thread that holds its lock would abort the interpreter at exit.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    control(Path(sys.argv[1]), attached=_ATTACHED in sys.argv[2:])

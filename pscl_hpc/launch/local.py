"""Jobs on this machine: submitit's local executor, made to outlive the shell and to stop gently.

Run as ``python -m pscl_hpc.launch.local FOLDER`` this module is the process that watches the tasks of one job; its
process id is the job's id. SIGINT asks it to stop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller, LocalExecutor, LocalJob

from pscl_hpc.errors import EXIT_TERMINATED
from pscl_hpc.launch.batch import REFUSED, STOPPED
from pscl_hpc.launch.world import RESTARTS_LOCAL

STOP_GRACE_S = 60.0
"""How long tasks may take to stop before they are killed."""
STARTS = 1000
"""How often the tasks of one job are started at most."""
RETRIES = "PSCL_HPC_RETRIES"
"""Variable with the number of new starts of a job whose rank died or failed."""
NO_LIMIT_MIN = 60 * 24 * 365
"""Minutes that stand for no time limit."""


class DetachedExecutor(LocalExecutor):
    """Starts jobs in a session of their own, without the streams of the submitting shell.

    submitit's own local jobs end with the terminal, hold its pipes open, and see no GPU unless told so.
    """

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
        with (Path(self.folder) / "controller.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pscl_hpc.launch.local", str(self.folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return LocalJob(
            folder=self.folder, job_id=str(process.pid), process=process, tasks=list(range(tasks))
        )


class PatientController(Controller):
    """Watches the tasks of a job; gives them time to stop, where submitit's kills after one second.

    What it decides after their end is what the batch script decides on Slurm, :mod:`pscl_hpc.launch.batch`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._starts = 0
        signal.signal(signal.SIGUSR2, lambda number, frame: self._forward_signal(signal.SIGUSR2))

    def start_tasks(self) -> None:
        """Start all tasks; they find how often that happened before in their environment."""
        os.environ[RESTARTS_LOCAL] = str(self._starts)
        self._starts += 1
        super().start_tasks()

    def run(self, max_retry: int = STARTS) -> None:
        """Start the tasks until they end well, on purpose, or badly for more than the allowed number of times."""
        failures, allowed = 0, int(os.environ[RETRIES])
        while self._starts < max_retry:
            try:
                self.start_tasks()
                codes = self.wait()
            finally:
                self.kill_tasks()
            if LOCAL_REQUEUE_RETURN_CODE in codes:
                continue
            worst = worst_end(codes)
            if worst in (0, EXIT_TERMINATED) or self._word() in (STOPPED, REFUSED):
                return
            failures += 1
            with (self.folder / f"{self.pid}.failures").open("a", encoding="utf-8") as noted:
                noted.write(f"{self._starts - 1} {worst}\n")
            if failures > allowed:
                return
            print(f"job {self.pid}: a rank ended with exit code {worst}; starting again", flush=True)

    def _word(self) -> str:
        """What a task that ended on purpose left behind in this start."""
        path = self.folder / f"{self.pid}.{self._starts - 1}.end"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""

    def kill_tasks(self) -> None:
        """Ask the tasks to stop, kill those that do not, and close their logs."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        signal.signal(signal.SIGINT, signal.default_int_handler)


def worst_end(codes: Sequence[int | None]) -> int:
    """The exit code by which a job's end is judged, as a shell gives it; 0 where all tasks ended well.

    Args:
        codes: Of the tasks. Negative: killed by that signal. None: alive at the time limit, and killed for it.
    """
    killed = [signal.SIGKILL if code is None else -code for code in codes if code is None or code < 0]
    # The death of one leads the others to an end that looks asked for, not the other way round.
    fatal = [number for number in killed if number != signal.SIGTERM]
    if fatal:
        return 128 + max(fatal)
    return max(128 - code if code < 0 else code for code in codes if code is not None)


def control(folder: Path) -> None:
    """Run the job that the environment describes, with its restarts, until it ends or is asked to stop."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        PatientController(folder).run()
    except KeyboardInterrupt:
        print(f"job {os.getpid()}: stopped by request", flush=True)


if __name__ == "__main__":
    control(Path(sys.argv[1]))

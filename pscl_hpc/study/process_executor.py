"""Jobs as processes of the study: they end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pscl_hpc.study.plan import Job
from pscl_hpc.study.schedule import Outcome

STOP_GRACE_S = 60.0
"""How long jobs may take to stop before they are killed."""
LOG_FILE = "stage.log"
"""What a job printed, in its run folder."""


class ProcessPool:
    """Starts each job in a process of its own.

    Args:
        threads: CPU threads of a job.
        environment: Added to that of the study, for each of the places that jobs run in; a job gets the one
            with the fewest jobs.
    """

    def __init__(self, threads: int, environment: list[dict[str, str]] | None = None) -> None:
        self._threads = str(threads)
        self._places = environment or []
        self._running: dict[str, tuple[Job, subprocess.Popen[bytes], dict[str, str]]] = {}

    def start(self, job: Job) -> None:
        """Begin or continue the run of a job; its folder holds the configuration already."""
        taken = [place for _, _, place in self._running.values()]
        place = min(self._places, key=taken.count, default={})
        with (job.folder / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pscl_hpc.study.stage", str(job.folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": self._threads,
                    "MKL_NUM_THREADS": self._threads,
                    **place,
                },
                # Ctrl-C reaches the study alone, which then stops its jobs.
                start_new_session=True,
            )
        self._running[job.key] = (job, process, place)

    def poll(self) -> dict[str, Outcome]:
        """Jobs that have ended since the last call."""
        ended = {}
        for key, (job, process, _) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            assert process.stdin is not None
            process.stdin.close()
            del self._running[key]
            ended[key] = Outcome("done") if code == 0 else Outcome("failed", _reason(job.folder, code))
        return ended

    def stop(self) -> None:
        """Ask all jobs to stop, and kill those that do not."""
        processes = [process for _, process, _ in self._running.values()]
        for process in processes:
            process.terminate()
        end = time.monotonic() + STOP_GRACE_S
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            time.sleep(0.05)
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._running.clear()


def visible_gpus() -> list[dict[str, str]]:
    """One place for each GPU that this process sees; none without GPUs."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(count)] if given is None else given.split(",")[:count]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]


def last_error(log: Path) -> str:
    """The error sentence that a log ends with; empty where it ends otherwise."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("error: ") if last.startswith("error: ") else ""


def _reason(folder: Path, code: int) -> str:
    """Why a job failed: its last error sentence, or how it ended."""
    said = last_error(folder / LOG_FILE)
    if code > 0 and said:
        return said
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; see {folder / LOG_FILE}"
    return f"ended with exit code {code}; see {folder / LOG_FILE}"

"""The state of runs and their jobs, and the pace of a run from its log."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pscl_hpc.errors import UserError
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import JobRecord, latest_job
from pscl_hpc.launch.schedulers import SCHEDULERS, JobState, states_of
from pscl_hpc.launch.state import Known, State, detail_of, state_of
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.lock import is_locked
from pscl_hpc.runs.metrics import read_last
from pscl_hpc.runs.places import CONFIG_FILE
from pscl_hpc.runs.record import METRICS_FILE, RECORD_FILE
from pscl_hpc.runs.status_file import PACE_LINES

_SILENCE_S, _SILENT_LINES = 60.0, 10
"""A run with no new line for so many seconds, and for so many times its usual distance of lines, has no pace."""


@dataclass(frozen=True)
class RunStatus:
    """The state of a run."""

    run: str
    kind: str
    state: State
    step: int
    total: int
    """Steps of the whole run; 0 while a run with ``schedule.minutes`` has not decided."""
    loss: float | None
    images_per_second: float | None
    eta_s: float | None
    """Seconds left at the pace of the newest attempt's last lines; None unless the run is running."""
    checkpoint: int | None
    """Step of the newest checkpoint."""
    restarts: int
    """How often the run was resumed."""
    last_end: str
    """Why the previous attempt ended; empty for the first."""
    ranks: int
    job: str
    """Id of the newest job; empty if the run is being worked on by hand."""
    cluster: str
    purge: str
    """Which file of the run or its archive the site deletes first, and when; empty if its policy is not known."""
    detail: str
    """The scheduler's words, or why the run failed."""


def run_status(run: Path) -> RunStatus:
    """Read a run folder and ask the scheduler about its newest job.

    Raises:
        UserError: ``run`` is not a run folder.
    """
    folder, job = RunFolder.load(run), latest_job(run)
    return _status(folder, job, SCHEDULERS[job.cluster].state(job) if job else None)


def list_statuses(parent: Path) -> tuple[list[RunStatus], list[str]]:
    """The state of all runs below ``parent``, oldest first; and an error for each folder that cannot be read.

    Slurm is asked once about all jobs.

    Raises:
        UserError: ``parent`` does not exist.
    """
    found: list[RunStatus] = []
    damaged: list[str] = []
    opened: list[tuple[RunFolder, JobRecord | None]] = []

    def careful(run: Path, work: Callable[[], None]) -> None:
        try:
            work()
        except UserError as error:
            damaged.append(str(error))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            # JSON of another structure, or text that is not UTF-8.
            damaged.append(
                f"{run}: its files are damaged ({type(error).__name__}: {error}); restore it from a copy"
            )

    for run in find_runs(parent):
        careful(run, lambda run=run: opened.append((RunFolder.load(run), latest_job(run))))  # type: ignore[misc]
    answers = states_of(job for folder, job in opened if job is not None and not folder.done)
    for folder, job in opened:
        asked = answers.get((job.cluster, job.job)) if job else None
        careful(folder.path, lambda f=folder, j=job, a=asked: found.append(_status(f, j, a)))  # type: ignore[misc]
    return found, damaged


def _status(folder: RunFolder, job: JobRecord | None, asked: JobState | None) -> RunStatus:
    run = folder.path
    if job is not None and asked is not None and asked.phase == "ended" and is_locked(run):
        # Resumed by hand after its last job.
        job = asked = None
    attempts = folder.attempts
    known = Known(folder, job, asked)
    state = state_of(known)
    lines = read_last(run / METRICS_FILE, "loss", PACE_LINES)
    live = asked is not None and asked.phase != "ended"
    last: dict[str, Any] = lines[-1] if lines else {}
    newest: dict[str, Any] = attempts[-1] if attempts else {}
    silent = _silence(lines) if state == "running" else 0.0
    checkpoint = folder.newest_checkpoint()
    # Lines may be many steps apart.
    step = max(int(last.get("step", 0)), checkpoint or 0)
    return RunStatus(
        run=str(run),
        kind=str(folder.record.get("kind") or folder.setting("kind", str)),
        state=state,
        step=step,
        total=folder.steps or step,
        loss=last.get("loss"),
        images_per_second=last.get("images_per_second")
        if state in ("running", "done") and not silent
        else None,
        eta_s=_time_left(folder, lines) if state == "running" and not silent else None,
        checkpoint=checkpoint,
        restarts=max(0, len(attempts) - 1),
        last_end=str(attempts[-2].get("ended", "")) if len(attempts) > 1 else "",
        ranks=job.tasks if job and (live or not attempts) else int(newest.get("ranks", 1)),
        job=job.job if job else "",
        cluster=job.cluster if job else "",
        purge=str(folder.first_purged() or ""),
        detail=f"no line in the log for {silent:.0f} s" if silent else detail_of(known, state),
    )


def find_runs(parent: Path) -> list[Path]:
    """Run folders below ``parent``, oldest first.

    Raises:
        UserError: ``parent`` does not exist.
    """
    if not parent.is_dir():
        raise UserError(f"{parent}: folder not found; runs are in runs/ by default, name another with --runs")
    runs = []
    for place, folders, files in os.walk(parent):
        if RECORD_FILE in files and CONFIG_FILE in files:
            runs.append(Path(place))
            # A run holds no other runs, but perhaps thousands of files.
            folders.clear()
    return sorted(runs, key=lambda run: (run / CONFIG_FILE).stat().st_mtime)


def signal_delay_warning(run: Path, profile: Profile) -> str:
    """A warning if the profile's ``signal_delay_s`` is too short for this run's steps and checkpoints, else empty.

    The delay has to cover twice the longest step and the writing of a checkpoint.
    """
    folder = RunFolder.load(run)
    lines = _loss_lines(folder)
    first_steps = _first_steps(folder)
    seconds = [
        (float(after["time"]) - float(before["time"])) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(lines)
        if after["step"] > before["step"]
        and after["time"] > before["time"]
        # The pause between two attempts is not a step.
        and not any(before["step"] <= first < after["step"] for first in first_steps)
    ]
    saving = [float(line["checkpoint_seconds"]) for line in lines if line.get("checkpoint_seconds")]
    if len(seconds) < 2:
        return ""
    needed = 2 * (sorted(seconds)[-1 - len(seconds) // 20] + max(saving, default=0.0))
    if profile.time is None or needed <= profile.signal_delay:
        return ""
    return (
        f"the job is signalled {profile.signal_delay} s before its time limit, but a step and a checkpoint of this run "
        f"took up to {needed / 2:.0f} s; set signal_delay_s to {math.ceil(needed)} in a profile"
    )


def _time_left(folder: RunFolder, lines: list[dict[str, Any]]) -> float | None:
    """Seconds to the last step at the pace of the newest attempt's last lines; None if there are fewer than two."""
    if first_steps := _first_steps(folder):
        lines = [line for line in lines if int(line["step"]) > first_steps[-1]]
    if len(lines) < 2:
        return None
    steps = int(lines[-1]["step"]) - int(lines[0]["step"])
    seconds = float(lines[-1]["time"]) - float(lines[0]["time"])
    left = folder.steps - int(lines[-1]["step"])
    return left * seconds / steps if steps > 0 and folder.steps else None


def _silence(lines: list[dict[str, Any]]) -> float:
    """Seconds since the last line, if the pace of the lines before says that there should have been several; else 0."""
    if len(lines) < 2:
        return 0.0
    gaps = sorted(float(after["time"]) - float(before["time"]) for before, after in itertools.pairwise(lines))
    since = time.time() - float(lines[-1]["time"])
    return since if since > max(_SILENCE_S, _SILENT_LINES * gaps[len(gaps) // 2]) else 0.0


def _loss_lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [line for line in folder.metrics() if "loss" in line]


def _first_steps(folder: RunFolder) -> list[int]:
    """The step from which each attempt resumed."""
    return [int(attempt["first_step"]) for attempt in folder.attempts if "first_step" in attempt]

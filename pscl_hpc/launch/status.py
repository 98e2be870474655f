"""The state of runs and their jobs, and the pace of a run from its log."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pscl_hpc.errors import UserError
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import JOBS, latest_job
from pscl_hpc.launch.schedulers import SCHEDULERS, JobState
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.lock import is_locked

State = Literal["prepared", "queued", "starting", "running", "done", "failed", "stopped", "lost"]
"""prepared: the folder has its configuration, but no job or process has started yet.

lost: recorded as running, but nothing runs; submitting it again resumes it from the last checkpoint.
"""
PACE_LINES = 20
"""Log lines over which the pace is measured."""


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
    detail: str
    """The scheduler's words, or why the run failed."""


def run_status(run: Path) -> RunStatus:
    """Read a run folder and ask the scheduler about its newest job.

    Raises:
        UserError: ``run`` is not a run folder.
    """
    folder = RunFolder.load(run)
    job = latest_job(run)
    asked = SCHEDULERS[job.cluster].state(job) if job else None
    if job is not None and asked is not None and asked.phase == "ended" and is_locked(run):
        # Resumed by hand after its last job.
        job = asked = None
    state = _state(folder, asked)
    lines = _loss_lines(folder)
    steps = folder.checkpoints.steps() if folder.steps else []
    attempts = folder.attempts
    live = asked is not None and asked.phase != "ended"
    last: dict[str, Any] = lines[-1] if lines else {}
    newest: dict[str, Any] = attempts[-1] if attempts else {}
    return RunStatus(
        run=str(run),
        kind=folder.setting("kind", str),
        state=state,
        step=int(last.get("step", 0)),
        total=folder.steps or int(last.get("step", 0)),
        loss=last.get("loss"),
        images_per_second=last.get("images_per_second"),
        eta_s=_time_left(folder) if state == "running" else None,
        checkpoint=steps[-1] if steps else None,
        restarts=max(0, len(attempts) - 1),
        last_end=str(attempts[-2].get("ended", "")) if len(attempts) > 1 else "",
        ranks=job.tasks if job and (live or not attempts) else int(newest.get("ranks", 1)),
        job=job.job if job else "",
        cluster=job.cluster if job else "",
        detail=_detail(folder, state, asked),
    )


def list_statuses(parent: Path) -> tuple[list[RunStatus], list[str]]:
    """The state of all runs below ``parent``, oldest first; and an error for each folder that cannot be read.

    Raises:
        UserError: ``parent`` does not exist.
    """
    found, damaged = [], []
    for run in find_runs(parent):
        try:
            found.append(run_status(run))
        except UserError as error:
            damaged.append(str(error))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            # JSON of another structure, or text that is not UTF-8.
            damaged.append(
                f"{run}: its files are damaged ({type(error).__name__}: {error}); restore it from a copy"
            )
    return found, damaged


def find_runs(parent: Path) -> list[Path]:
    """Run folders below ``parent``, oldest first.

    Raises:
        UserError: ``parent`` does not exist.
    """
    if not parent.is_dir():
        raise UserError(f"{parent}: folder not found; runs are in runs/ by default, name another with --runs")
    runs = [path.parent for path in parent.rglob("run.json") if (path.parent / "config.yaml").is_file()]
    return sorted(runs, key=lambda run: (run / "config.yaml").stat().st_mtime)


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


def _time_left(folder: RunFolder) -> float | None:
    """Seconds to the last step at the pace of the newest attempt's last lines; None if there are fewer than two."""
    first_steps = _first_steps(folder)
    lines = _loss_lines(folder)
    if first_steps:
        lines = [line for line in lines if int(line["step"]) > first_steps[-1]]
    lines = lines[-PACE_LINES:]
    if len(lines) < 2:
        return None
    steps = int(lines[-1]["step"]) - int(lines[0]["step"])
    seconds = float(lines[-1]["time"]) - float(lines[0]["time"])
    left = folder.steps - int(lines[-1]["step"])
    return left * seconds / steps if steps > 0 and folder.steps else None


def _loss_lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [line for line in folder.metrics() if "loss" in line]


def _first_steps(folder: RunFolder) -> list[int]:
    """The step from which each attempt resumed."""
    return [int(attempt["first_step"]) for attempt in folder.attempts if "first_step" in attempt]


def _state(folder: RunFolder, asked: JobState | None) -> State:
    recorded = str(folder.record.get("status"))
    phase = asked.phase if asked else "ended"
    if recorded == "done":
        return "done"
    if phase == "pending":
        return "queued"
    if phase == "running":
        return "running" if recorded == "running" else "starting"
    if recorded in ("failed", "stopped"):
        return "failed" if recorded == "failed" else "stopped"
    if recorded == "running" and (phase == "unknown" or is_locked(folder.path)):
        return "running"
    if asked is None and recorded != "running":
        return "prepared"
    return "queued" if phase == "unknown" else "lost"


def _detail(folder: RunFolder, state: State, asked: JobState | None) -> str:
    said = asked.detail if asked else ""
    if state == "prepared":
        return "not started yet; the same command starts it"
    if state == "lost" and asked is not None:
        ended = f" ({said})" if said else ""
        return f"its job crashed or was killed{ended}; see 'pscl-hpc jobs logs' and {folder.path / JOBS}"
    if state == "lost":
        return "its process is gone; the same command resumes it"
    # While a job is alive, the recorded error is that of the previous attempt.
    return str(folder.record.get("error") or "") if state in ("failed", "stopped") else said

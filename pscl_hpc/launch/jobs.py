"""What runs and their jobs are doing; following their logs; cancelling them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.launch.local import STOP_GRACE_S
from pscl_hpc.launch.pace import time_left
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.registry import JOBS, JobRecord, latest_job
from pscl_hpc.launch.schedulers import SCHEDULERS, JobState, Watch, known_phase, wait_for_end
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.lock import is_locked
from pscl_hpc.segmentation.config import FinetuneConfig

State = Literal["prepared", "queued", "starting", "running", "done", "failed", "stopped", "lost"]
"""prepared: the folder has its configuration, but neither a job nor a process ever began.

lost: the record says that it runs, but nothing does; submitting it again continues from the last checkpoint.
"""
_GREETING = re.compile(r"^rank \d+ of \d+ on (\S+): job ", re.MULTILINE)


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    run: str
    kind: str
    state: State
    step: int
    total: int
    loss: float | None
    images_per_second: float | None
    eta_s: float | None
    """Seconds left at the pace of the newest attempt's last lines; None unless the run is running."""
    checkpoint: int | None
    """Step of the newest checkpoint."""
    restarts: int
    """How often the run was continued."""
    last_end: str
    """Why the attempt before ended; empty for the first."""
    ranks: int
    """Processes that work on it together."""
    job: str
    """Job id of the newest job; empty where somebody works on the run by hand."""
    cluster: str
    detail: str
    """What the scheduler says, or why the run failed."""


def run_status(run: Path) -> RunStatus:
    """Read a run folder and ask the scheduler of its newest job.

    Raises:
        UserError: when ``run`` is no run folder.
    """
    folder = RunFolder.load(run)
    job = latest_job(run)
    asked = SCHEDULERS[job.cluster].state(job) if job else None
    if job is not None and asked is not None and asked.phase == "ended" and is_locked(run):
        # Continued by hand after its last job.
        job = asked = None
    state = _state(folder, asked)
    lines = [line for line in folder.metrics() if "loss" in line]
    steps = folder.checkpoints.steps()
    attempts = folder.attempts
    live = asked is not None and asked.phase != "ended"
    last: dict[str, Any] = lines[-1] if lines else {}
    return RunStatus(
        run=str(run),
        kind=folder.config.kind,
        state=state,
        step=int(last.get("step", 0)),
        total=folder.config.schedule.steps,
        loss=last.get("loss"),
        images_per_second=last.get("images_per_second"),
        eta_s=time_left(folder) if state == "running" else None,
        checkpoint=steps[-1] if steps else None,
        restarts=max(0, len(attempts) - 1),
        last_end=str(attempts[-2].get("ended", "")) if len(attempts) > 1 else "",
        ranks=job.tasks if job and (live or not attempts) else _ranks(attempts),
        job=job.job if job else "",
        cluster=job.cluster if job else "",
        detail=_explain(folder, state, asked),
    )


def list_statuses(parent: Path) -> tuple[list[RunStatus], list[str]]:
    """Where all runs below ``parent`` stand, oldest first; and a sentence for each folder that cannot be read.

    Raises:
        UserError: when there is no such folder.
    """
    found, damaged = [], []
    for run in find_runs(parent):
        try:
            found.append(run_status(run))
        except UserError as error:
            damaged.append(str(error))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            # JSON that is whole, but is no record; text that is not UTF-8.
            damaged.append(
                f"{run}: its files are damaged ({type(error).__name__}: {error}); restore it from a copy"
            )
    return found, damaged


def find_runs(parent: Path) -> list[Path]:
    """Run folders below ``parent``, oldest first.

    Raises:
        UserError: when there is no such folder.
    """
    if not parent.is_dir():
        raise UserError(f"{parent}: no such folder; runs lie in runs/ by default, name another with --runs")
    records = [path for path in parent.rglob("run.json") if (path.parent / "config.yaml").is_file()]
    return [
        path.parent
        for path in sorted(records, key=lambda path: (path.parent / "config.yaml").stat().st_mtime)
    ]


def log_path(run: Path, rank: int = 0) -> Path:
    """The log of a rank of the newest job of a run.

    Raises:
        UserError: when the run has no job, or its job no such rank.
    """
    job = _job_of(run)
    if not 0 <= rank < job.tasks:
        raise UserError(f"{run}: job {job.job} has ranks 0 to {job.tasks - 1}; there is no rank {rank}")
    return job.log(run, rank)


def follow_log(run: Path, rank: int = 0, *, follow: bool) -> Iterator[str]:
    """The text of a log as it comes; with ``follow`` until the job ends.

    Raises:
        UserError: as :func:`log_path`.
        JobError: when Slurm no longer says whether the job goes on.
    """
    path = log_path(run, rank)
    job = _job_of(run)
    watch = Watch(job)
    position = 0
    while True:
        # Asked before reading: what was written up to the end is then read after it.
        alive = follow and watch.alive()
        if path.is_file():
            with path.open("rb") as handle:
                handle.seek(position)
                data = handle.read()
            position += len(data)
            if data:
                yield data.decode(errors="replace")
        if not alive:
            return
        time.sleep(0.5 if job.cluster == "local" else 2.0)


def ranks_of_node(run: Path, node: str) -> list[int]:
    """The ranks whose newest start was on a node, by the first line of their logs.

    Raises:
        UserError: when there is none; it names the nodes.
    """
    job = _job_of(run)
    nodes: dict[str, list[int]] = {}
    for rank in range(job.tasks):
        path = job.log(run, rank)
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for found in _GREETING.findall(text)[-1:]:
            nodes.setdefault(found, []).append(rank)
    if node not in nodes:
        where = f"it runs on {', '.join(nodes)}" if nodes else "no rank has begun yet"
        raise UserError(f"{run}: job {job.job} has no rank on '{node}'; {where}")
    return nodes[node]


def cancel(run: Path) -> RunStatus:
    """Stop the newest job of a run: it is asked first, and killed when it does not stop.

    The run keeps its checkpoints and can be submitted again.

    Raises:
        UserError: when nothing of the run is running.
        JobError: when the job outlives even that, or Slurm does not answer.
    """
    job = _job_of(run)
    scheduler = SCHEDULERS[job.cluster]
    if known_phase(job) == "ended":
        raise UserError(f"{run}: job {job.job} has ended already; there is nothing to cancel")
    before = RunFolder.load(run).record
    scheduler.interrupt(job)
    if not wait_for_end(job, STOP_GRACE_S + 5):
        scheduler.kill(job)
        if not wait_for_end(job, STOP_GRACE_S + 5):
            raise JobError(f"job {job.job} of {run} does not stop; ask the administrator of {job.host}")
        # Killed ranks let go of the folder a moment after the process that watched them has gone.
        end = time.monotonic() + STOP_GRACE_S + 5
        while is_locked(run) and time.monotonic() < end:
            time.sleep(0.1)
    folder = RunFolder.load(run)
    # What went wrong while it stopped, such as a checkpoint that could not be written, is not to be forgotten.
    failed = folder.record.get("status") == "failed" and folder.record != before
    if not folder.done and not failed:
        folder.update(status="stopped", error="cancelled")
    return run_status(run)


def requeue(run: Path) -> RunStatus:
    """Let a run go on in a new start of its job: a live job saves first, one that ended is submitted again.

    Raises:
        UserError: when the run is done, its job waits already, or something else works on it.
        JobError: when the job can be brought neither to save nor to start again, or Slurm does not answer.
    """
    job = _job_of(run)
    folder = RunFolder.load(run)
    # A job of a study goes on after its run, and finds out itself what is left.
    if folder.done and not job.entry:
        raise UserError(f"{run}: this run is done; there is nothing to requeue")
    scheduler = SCHEDULERS[job.cluster]
    phase = known_phase(job)
    if phase == "pending":
        raise UserError(f"{run}: job {job.job} waits in the queue already")
    if phase != "running":
        _submit_again(run, job)
        return run_status(run)
    starts = _starts(run, job)
    scheduler.notify(job)
    end = time.monotonic() + STOP_GRACE_S
    watch = Watch(job)
    while watch.alive() and watch.phase != "pending" and _starts(run, job) == starts:
        if time.monotonic() > end and watch.phase == "running":
            # It hears nothing, so what it did since its last checkpoint is done again.
            scheduler.restart(job)
            break
        time.sleep(0.2 if job.cluster == "local" else 1.0)
    return run_status(run)


def _submit_again(run: Path, job: JobRecord) -> None:
    from pscl_hpc.launch.submission import submit  # with torch, which only looking at jobs need not wait for

    folder = RunFolder.load(run)
    config = folder.config
    paths = [config.data.archive, *([config.pretrained] if isinstance(config, FinetuneConfig) else [])]
    if any(path and not Path(path).is_absolute() for path in paths) and Path.cwd() != Path(job.folder):
        raise UserError(
            f"{run}: its configuration has paths relative to {job.folder}; requeue it from that folder"
        )
    submit(
        config.model_copy(update={"run": str(run)}),
        cluster=job.cluster,
        profile=Profile().replace(f"{run / JOBS / job.job}.json", **job.profile),
        any_commit=job.any_commit,
        entry=job.entry,
    )


def _ranks(attempts: list[dict[str, Any]]) -> int:
    return int(attempts[-1].get("ranks", 1)) if attempts else 1


def _starts(run: Path, job: JobRecord) -> int:
    """How often rank 0 of a job has begun."""
    path = job.log(run)
    return len(_GREETING.findall(path.read_text(encoding="utf-8", errors="replace"))) if path.is_file() else 0


def _job_of(run: Path) -> JobRecord:
    RunFolder.load(run)
    job = latest_job(run)
    if job is None:
        raise UserError(f"{run}: was not started by 'pscl-hpc submit'; it has no job and no log")
    return job


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


def _explain(folder: RunFolder, state: State, asked: JobState | None) -> str:
    said = asked.detail if asked else ""
    if state == "prepared":
        return "nothing has begun yet; the same command begins it"
    if state == "lost" and asked is not None:
        ended = f" ({said})" if said else ""
        return f"its job ended without a word{ended}; see 'pscl-hpc jobs logs' and {folder.path / JOBS}"
    if state == "lost":
        return "its process is gone; the same command continues it"
    # While a job is alive the error in the record is that of the attempt before.
    return str(folder.record.get("error") or "") if state in ("failed", "stopped") else said

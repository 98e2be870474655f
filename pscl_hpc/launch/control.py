"""Following the logs of jobs, cancelling and requeueing them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.launch.ends import CANCELLED
from pscl_hpc.launch.local import STOP_GRACE_S
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import JOBS, JobRecord, latest_job
from pscl_hpc.launch.schedulers import SCHEDULERS, Watch, known_phase, wait_for_end
from pscl_hpc.launch.status import RunStatus, run_status
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.lock import is_locked

_FIRST_LINE = re.compile(r"^rank \d+ of \d+ on (\S+): job ", re.MULTILINE)


def log_path(run: Path, rank: int = 0) -> Path:
    """The log of a rank of the newest job of a run.

    Raises:
        UserError: the run has no job, or the job no such rank.
    """
    job = _job_of(run)
    if not 0 <= rank < job.tasks:
        raise UserError(f"{run}: job {job.job} has ranks 0 to {job.tasks - 1}, but not {rank}")
    return job.log(run, rank)


def follow_log(run: Path, rank: int = 0, *, follow: bool) -> Iterator[str]:
    """The text of a log; with ``follow`` also what is added to it until the job ends.

    Raises:
        UserError: as :func:`log_path`.
        JobError: Slurm no longer answers whether the job is running.
    """
    path = log_path(run, rank)
    job = _job_of(run)
    watch = Watch(job)
    position = 0
    while True:
        # Asked before reading, so that the last read includes everything up to the job's end.
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
    """The ranks that last started on a node, from the first line of their logs.

    Raises:
        UserError: there is none; the message names the nodes.
    """
    job = _job_of(run)
    nodes: dict[str, list[int]] = {}
    for rank in range(job.tasks):
        for found in _starts(run, job, rank)[-1:]:
            nodes.setdefault(found, []).append(rank)
    if node not in nodes:
        where = f"it runs on {', '.join(nodes)}" if nodes else "no rank has started yet"
        raise UserError(f"{run}: job {job.job} has no rank on '{node}'; {where}")
    return nodes[node]


def cancel(run: Path) -> RunStatus:
    """Stop the newest job of a run: it is asked first, and killed if it does not stop.

    The run keeps its checkpoints and can be submitted again.

    Raises:
        UserError: no job of the run is pending or running.
        JobError: the job cannot even be killed, or Slurm does not answer.
    """
    job = _job_of(run)
    scheduler = SCHEDULERS[job.cluster]
    if known_phase(job) == "ended":
        raise UserError(f"{run}: job {job.job} has already ended; there is nothing to cancel")
    before = RunFolder.load(run).record
    scheduler.interrupt(job)
    if not wait_for_end(job, STOP_GRACE_S + 5):
        scheduler.kill(job)
        if not wait_for_end(job, STOP_GRACE_S + 5):
            raise JobError(f"job {job.job} of {run} does not stop; ask the administrator of {job.host}")
        # Killed ranks release the lock of the folder a moment after their controller has ended.
        end = time.monotonic() + STOP_GRACE_S + 5
        while is_locked(run) and time.monotonic() < end:
            time.sleep(0.1)
    folder = RunFolder.load(run)
    # Keep an error that happened while the run stopped, such as a checkpoint that could not be written.
    failed = folder.record.get("status") == "failed" and folder.record != before
    if not folder.done and not failed:
        folder.update(status="stopped", error=CANCELLED)
    return run_status(run)


def requeue(run: Path) -> RunStatus:
    """Restart the job of a run: a running job saves first, a job that has ended is submitted again.

    Raises:
        UserError: the run is done, its job is already pending, or something else is working on it.
        JobError: the job neither saves nor can be restarted, or Slurm does not answer.
    """
    job = _job_of(run)
    folder = RunFolder.load(run)
    # A job of a study has more to do after its run, and finds out itself what is left.
    if folder.done and not job.entry:
        raise UserError(f"{run}: this run is done; there is nothing to requeue")
    scheduler = SCHEDULERS[job.cluster]
    phase = known_phase(job)
    if phase == "pending":
        raise UserError(f"{run}: job {job.job} is already waiting in the queue")
    if phase != "running":
        _submit_again(run, job)
        return run_status(run)
    starts = len(_starts(run, job))
    scheduler.preempt(job)
    end = time.monotonic() + STOP_GRACE_S
    watch = Watch(job)
    while watch.alive() and watch.phase != "pending" and len(_starts(run, job)) == starts:
        if time.monotonic() > end and watch.phase == "running":
            # It does not react; the steps since its last checkpoint are repeated.
            scheduler.restart(job)
            break
        time.sleep(0.2 if job.cluster == "local" else 1.0)
    return run_status(run)


def _submit_again(run: Path, job: JobRecord) -> None:
    # These import torch, which takes seconds and is not needed to look at jobs.
    from pscl_hpc.launch.submission import submit
    from pscl_hpc.pretraining.config import PretrainConfig
    from pscl_hpc.segmentation.trained import SegmentationConfig

    config = RunFolder.load(run).config
    paths = [config.data.archive]
    if isinstance(config, SegmentationConfig | PretrainConfig):
        paths.append(config.pretrained)
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


def _starts(run: Path, job: JobRecord, rank: int = 0) -> list[str]:
    """The node of each start of a rank."""
    path = job.log(run, rank)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return _FIRST_LINE.findall(text)


def _job_of(run: Path) -> JobRecord:
    RunFolder.load(run)
    job = latest_job(run)
    if job is None:
        raise UserError(f"{run}: was not started by 'pscl-hpc submit'; it has no job and no log")
    return job

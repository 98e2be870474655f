"""From a configuration to a job: the run folder is made first, the job finds everything in it."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit.helpers
from submitit.core.utils import FailedJobError, FailedSubmissionError

from pscl_hpc.config import Config
from pscl_hpc.errors import UserError
from pscl_hpc.launch.executors import Resources, build_executor, check_resources
from pscl_hpc.launch.job import STAGES, StageJob
from pscl_hpc.launch.registry import JOBS, JobRecord, latest_job, save_job
from pscl_hpc.launch.schedulers import SCHEDULERS, process_start
from pscl_hpc.runs import RunFolder, commit, now


@dataclass(frozen=True)
class Submission:
    """A run folder and the job that fills it."""

    run: Path
    job: JobRecord


def submit(config: Config, *, cluster: str, resources: Resources | None = None) -> Submission:
    """Submit the run of a configuration. An unfinished run in ``config.run`` is continued.

    Raises:
        UserError: when the folder holds another run or a live job, or the cluster refuses; nothing of an existing run
            is changed then.
    """
    resources = resources or Resources()
    check_resources(cluster, resources)
    if not Path(config.data.archive).exists():
        raise UserError(f"{config.data.archive}: no such archive; check data.archive, or build it first")
    if "%" in str(Path(config.run).absolute()):
        raise UserError(f"{config.run}: a job's folder must not contain '%'; choose another with run=...")
    folder = RunFolder.reserve(config)
    _check_free(folder)
    run = folder.path
    (run / JOBS).mkdir(exist_ok=True)
    executor = build_executor(cluster, (run / JOBS).absolute(), config.name, resources)
    before = {"status": folder.record.get("status", "failed"), "error": folder.record.get("error")}
    # Queued before it is handed over: a job that begins at once must not find its own record overwritten.
    folder.update(kind=config.kind, name=config.name, status="queued", error="")
    try:
        job = _hand_over(executor, StageJob(str(run.absolute()), STAGES[config.kind]))
    except UserError as error:
        folder.update(status=before["status"], error=before["error"] or str(error))
        raise
    record = JobRecord(
        job=str(job.job_id),
        cluster=cluster,
        stage=config.kind,
        submitted=time.time(),
        when=now(),
        host=socket.gethostname(),
        folder=str(Path.cwd()),
        commit=commit(),
        started=process_start(int(job.job_id)) if cluster == "local" else "",
        resources={key: value for key, value in dataclasses.asdict(resources).items() if value is not None},
    )
    save_job(run, record)
    return Submission(run, record)


def _hand_over(executor: Any, job: StageJob) -> Any:
    slurm_conf = os.environ.get("SLURM_CONF")
    # A job submitted from inside another one must not inherit its shape.
    with submitit.helpers.clean_env():
        if slurm_conf is not None:
            os.environ["SLURM_CONF"] = slurm_conf
        try:
            return executor.submit(job)
        except (FailedSubmissionError, FailedJobError) as error:
            lines = [line.strip().removeprefix("sbatch: error: ") for line in str(error).splitlines()]
            reason = "; ".join(line for line in lines if line)
            raise UserError(f"the cluster refused the job: {reason}") from None


def _check_free(folder: RunFolder) -> None:
    """Neither done nor being worked on."""
    if folder.done:
        raise UserError(f"{folder.path}: this run is done; choose another folder with run=...")
    job = latest_job(folder.path)
    if job is not None and SCHEDULERS[job.cluster].state(job).phase in ("pending", "running"):
        raise UserError(
            f"{folder.path}: job {job.job} is at work on it; cancel it with 'pscl-hpc jobs cancel' first"
        )

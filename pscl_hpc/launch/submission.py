"""From a configuration to a job: the run folder is made first, the job finds everything in it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit.helpers
from submitit.core.utils import FailedJobError, FailedSubmissionError

from pscl_hpc.archive import Archive
from pscl_hpc.config import Config, PretrainConfig
from pscl_hpc.errors import UserError
from pscl_hpc.launch.code import source_hash
from pscl_hpc.launch.executors import batch_script, build_executor, check_resources
from pscl_hpc.launch.job import STAGES, StageJob, keep_last_end
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.registry import JOBS, JobRecord, latest_job, save_job
from pscl_hpc.launch.schedulers import known_phase, process_start
from pscl_hpc.models import load_trunk
from pscl_hpc.pretraining.data import PretrainData
from pscl_hpc.runs import RunFolder, commit, now
from pscl_hpc.runs.lock import lock_holder
from pscl_hpc.segmentation.data import rank_slots, select_data, select_unlabelled


@dataclass(frozen=True)
class Submission:
    """A run folder and the job that fills it."""

    run: Path
    job: JobRecord


def submit(
    config: Config,
    *,
    cluster: str,
    profile: Profile | None = None,
    any_commit: bool = False,
    entry: str = "",
) -> Submission:
    """Submit the run of a configuration. An unfinished run in ``config.run`` is continued.

    Args:
        config: the run.
        cluster: ``local`` or ``slurm``.
        profile: what to ask for.
        any_commit: let the job start on code that was changed meanwhile.
        entry: as in :func:`submit_many`.

    Raises:
        UserError: when the folder holds another run, or one that something works on, or the cluster refuses; nothing
            of an existing run is changed then.
        JobError: when Slurm does not say what became of the job before.
    """
    profile = profile or Profile()
    check_resources(cluster, profile)
    _check_input(config, profile)
    folder = RunFolder.reserve(config)
    _check_free(folder, entry)
    files = (folder.path / JOBS).absolute()
    return _submit([folder], files, cluster, config.name, profile, any_commit, entry)[0]


def submit_many(
    configs: Sequence[Config],
    *,
    cluster: str,
    files: Path,
    name: str,
    profile: Profile | None = None,
    any_commit: bool = False,
    entry: str = "",
) -> list[Submission]:
    """Submit many runs that ask for the same: on Slurm one job array, here one job after the other's start.

    Args:
        configs: the runs; each gets its own folder.
        cluster: ``local`` or ``slurm``.
        files: folder of the array's scripts and logs.
        name: name of the array.
        profile: what each run asks for.
        any_commit: as in :func:`submit`.
        entry: ``module:function`` that does the runs and more, in place of their stages. It finds out itself what is
            left, so that a run that is done may be among them.

    Returns:
        One submission for each configuration, in their order.

    Raises:
        UserError: as :func:`submit`, before anything is submitted.
        JobError: as :func:`submit`.
    """
    profile = profile or Profile()
    check_resources(cluster, profile)
    for config in configs:
        _check_input(config, profile)
    if "%" in str(files.absolute()):
        raise UserError(f"{files}: a job's folder must not contain '%'; choose another")
    folders = [RunFolder.reserve(config) for config in configs]
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise UserError("two of the runs have the same folder; give each its own run=...")
    for folder in folders:
        _check_free(folder, entry)
    if not folders:
        return []
    return _submit(folders, files.absolute(), cluster, name, profile, any_commit, entry)


def show_script(config: Config, *, cluster: str, profile: Profile) -> str:
    """The batch script that :func:`submit` would hand to Slurm. Nothing is made or changed.

    Raises:
        UserError: when the profile lacks something.
    """
    check_resources(cluster, profile, dry_run=True)
    _check_input(config, profile)
    run = Path(config.run) if config.run else Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return batch_script((run / JOBS).absolute(), config.name, profile)


def _submit(
    folders: Sequence[RunFolder],
    files: Path,
    cluster: str,
    name: str,
    profile: Profile,
    any_commit: bool,
    entry: str,
) -> list[Submission]:
    files.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        (folder.path / JOBS).mkdir(exist_ok=True)
    executor = build_executor(cluster, files, name, profile)
    source, head = "" if any_commit else source_hash(), commit()
    # What follows a run that is done leaves its record as it is: it would be trained again.
    begun = [folder for folder in folders if not folder.done]
    before = [(folder.record.get("status", "failed"), folder.record.get("error")) for folder in begun]
    # Queued before it is handed over: a job that begins at once must not find its own record overwritten.
    for folder in begun:
        last = latest_job(folder.path)
        keep_last_end(folder, last.log(folder.path).with_name(f"{last.job}.failures") if last else None)
        folder.update(kind=folder.config.kind, name=folder.config.name, status="queued", error="")
    stages = [
        StageJob(
            run=str(folder.path.absolute()),
            entry=entry or STAGES[folder.config.kind],
            files=str(files),
            nodes=profile.nodes,
            tasks_per_node=profile.tasks,
            gpus=bool(profile.gpus_per_node),
            stage=profile.stage,
            source=source,
            commit=head,
        )
        for folder in folders
    ]
    try:
        jobs = _hand_over(executor, stages)
    except UserError as error:
        for folder, (status, said) in zip(begun, before, strict=True):
            folder.update(status=status, error=said or str(error))
        raise
    done = []
    for folder, job in zip(folders, jobs, strict=True):
        record = JobRecord(
            job=str(job.job_id),
            cluster=cluster,
            stage=folder.config.kind,
            submitted=time.time(),
            when=now(),
            host=socket.gethostname(),
            folder=str(Path.cwd()),
            commit=head,
            started=process_start(int(job.job_id)) if cluster == "local" else "",
            # A run that is moved keeps its own files.
            files="" if files == (folder.path / JOBS).absolute() else str(files),
            nodes=profile.nodes,
            tasks=profile.nodes * profile.tasks,
            any_commit=any_commit,
            entry=entry,
            profile=profile.model_dump(mode="json", exclude_unset=True),
        )
        save_job(folder.path, record)
        done.append(Submission(folder.path, record))
    return done


def _hand_over(executor: Any, stages: Sequence[StageJob]) -> list[Any]:
    slurm_conf = os.environ.get("SLURM_CONF")
    send: Callable[[], list[Any]] = (
        (lambda: [executor.submit(stages[0])])
        if len(stages) == 1
        else (lambda: executor.submit_array(stages))
    )
    # A job submitted from inside another one must not inherit its shape.
    with submitit.helpers.clean_env():
        if slurm_conf is not None:
            os.environ["SLURM_CONF"] = slurm_conf
        try:
            return send()
        except (FailedSubmissionError, FailedJobError) as error:
            lines = [line.strip().removeprefix("sbatch: error: ") for line in str(error).splitlines()]
            reason = "; ".join(line for line in lines if line)
            raise UserError(f"the cluster refused the job: {reason}") from None


def _check_input(config: Config, profile: Profile) -> None:
    """What the stage itself would refuse on these ranks, before the job waits for them."""
    if not Path(config.data.archive).exists():
        raise UserError(f"{config.data.archive}: no such archive; check data.archive, or build it first")
    if "%" in str(Path(config.run).absolute()):
        raise UserError(f"{config.run}: a job's folder must not contain '%'; choose another with run=...")
    ranks = profile.nodes * profile.tasks
    with Archive(config.data.archive) as archive:
        if isinstance(config, PretrainConfig):
            PretrainData(archive, config, rank=0, ranks=ranks)
            return
        home = select_data(config, archive).collection.name
        rank_slots(config.batch_size, "batch_size", 0, ranks)
        if config.semi_supervised is not None:
            select_unlabelled(config, config.semi_supervised, archive, home)
            rank_slots(config.semi_supervised.batch_size, "semi_supervised.batch_size", 0, ranks)
        if config.pretrained:
            load_trunk(config.pretrained)


def _check_free(folder: RunFolder, entry: str) -> None:
    """Not being worked on; and not done, where the run is all that the job does."""
    if folder.done and not entry:
        raise UserError(f"{folder.path}: this run is done; choose another folder with run=...")
    job = latest_job(folder.path)
    phase = known_phase(job) if job is not None else "ended"
    if job is not None and phase in ("pending", "running"):
        raise UserError(
            f"{folder.path}: job {job.job} is at work on it; cancel it with 'pscl-hpc jobs cancel' first"
        )
    if job is not None and phase == "unknown":
        whose = f"a process of {job.host}" if job.cluster == "local" else "of a Slurm that is not here"
        raise UserError(
            f"{folder.path}: job {job.job} is {whose}; cancel it there, or delete "
            f"{folder.path / JOBS / job.job}.json if that machine is gone"
        )
    if holder := lock_holder(folder.path):
        raise UserError(f"{folder.path}: {holder} is at work on it; stop that one first, or wait for its end")

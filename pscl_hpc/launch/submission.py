"""From a configuration to a job: the run folder is made first, and the job finds everything in it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit.helpers
from submitit.core.utils import FailedJobError, FailedSubmissionError

from pscl_hpc.config import RunConfig
from pscl_hpc.errors import UserError
from pscl_hpc.launch.checks import check_free, check_input, check_percent
from pscl_hpc.launch.executors import build_executor, check_resources, submission_script
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import JOBS, JobRecord, job_records, latest_job, save_job
from pscl_hpc.launch.schedulers import process_start
from pscl_hpc.launch.stage_job import STAGES, StageJob, keep_last_end, source_hash
from pscl_hpc.runs import RunFolder, commit, now
from pscl_hpc.runs.attempts import newest_attempt
from pscl_hpc.runs.places import CONFIG_FILE, check_place
from pscl_hpc.runs.record import RECORD_FILE, steps_of
from pscl_hpc.runs.status_file import STATUS_FILE


@dataclass(frozen=True)
class Submission:
    """A run folder and the job that fills it."""

    run: Path
    job: JobRecord


def submit(
    config: RunConfig,
    *,
    cluster: str,
    profile: Profile | None = None,
    any_commit: bool = False,
    entry: str = "",
) -> Submission:
    """Submit one run, with its own name and folder; the arguments and errors are those of :func:`submit_many`."""
    return submit_many(
        [config], cluster=cluster, name=config.name, profile=profile, any_commit=any_commit, entry=entry
    )[0]


def submit_many(
    configs: Sequence[RunConfig],
    *,
    cluster: str,
    name: str,
    files: Path | None = None,
    profile: Profile | None = None,
    any_commit: bool = False,
    entry: str = "",
    attached: int | None = None,
) -> list[Submission]:
    """Submit runs that request the same resources: on Slurm as one job array, here as one job each, all at once.

    Args:
        configs: the runs; each has its own folder. Unfinished runs are resumed.
        cluster: ``local`` or ``slurm``.
        name: name of the jobs.
        files: folder of the scripts and logs; None for ``jobs`` of the first run.
        profile: the resources to request for each run.
        any_commit: let the jobs start even if the code has changed since their submission.
        entry: ``module:function`` to run instead of the stage. It finds out itself what is left to do, so runs that are
            done may be submitted too.
        attached: read end of a pipe: local jobs stop when its other end is closed. None: they outlive this process.

    Returns:
        One submission for each configuration, in the same order.

    Raises:
        UserError: before anything is submitted or an existing run is changed: a folder holds another run or one that is
            being worked on, or the cluster refuses the jobs.
        JobError: Slurm does not report the state of a run's previous job.
    """
    profile = profile or Profile()
    check_resources(cluster, profile)
    for config in configs:
        check_input(config, profile)
    if files is not None:
        check_percent(files)
    new = [not config.run or not Path(config.run).exists() for config in configs]
    folders = [RunFolder.reserve(config) for config in configs]
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise UserError("two of the runs have the same folder; give each a different run=...")
    if not folders:
        return []
    # Of several submissions at once, the others wait here and then find the job of the first.
    with contextlib.ExitStack() as locks:
        for folder in sorted(folders, key=lambda folder: folder.path.resolve()):
            locks.enter_context(_submitting(folder.path))
        for folder in folders:
            check_free(folder, entry)
        try:
            return _submit(folders, cluster, name, files, profile, any_commit, entry, attached)
        except UserError:
            for folder in itertools.compress(folders, new):
                _remove_unused(folder.path)
            raise


def _submit(
    folders: list[RunFolder],
    cluster: str,
    name: str,
    files: Path | None,
    profile: Profile,
    any_commit: bool,
    entry: str,
    attached: int | None,
) -> list[Submission]:
    files = (files or folders[0].path / JOBS).absolute()
    files.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        (folder.path / JOBS).mkdir(exist_ok=True)
    source, head = "" if any_commit else source_hash(), commit()
    stage_jobs = [
        StageJob(
            run=str(folder.path.absolute()),
            entry=entry or STAGES[folder.config.kind],
            files=str(files),
            nodes=profile.nodes,
            tasks_per_node=profile.tasks,
            gpus=bool(profile.gpus),
            stage=profile.stage,
            check_nodes=profile.check_nodes,
            debug_nccl=profile.debug_nccl,
            source=source,
            commit=head,
        )
        for folder in folders
    ]
    for folder in folders:
        if not folder.done and (profile.purge_days or folder.record.get("purge")):
            folder.set_purge(profile.purge_days)
    executor = build_executor(cluster, files, name, profile, attached)
    jobs = _send(executor, folders, stage_jobs)
    submissions = []
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
            # Left empty for the run's own folder, so that the run can be moved.
            files="" if files == (folder.path / JOBS).absolute() else str(files),
            nodes=profile.nodes,
            tasks=profile.nodes * profile.tasks,
            any_commit=any_commit,
            entry=entry,
            profile=profile.model_dump(mode="json", exclude_unset=True),
        )
        save_job(folder.path, record)
        submissions.append(Submission(folder.path, record))
    return submissions


@contextlib.contextmanager
def _submitting(run: Path) -> Iterator[None]:
    """Exclude other submissions of the same run, as far as the file system has locks."""
    with (run / CONFIG_FILE).open("r+") as handle:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if not (run / CONFIG_FILE).exists():
            raise UserError(f"{run}: another submission of this run was refused meanwhile; submit it again")
        yield


def _remove_unused(run: Path) -> None:
    """Remove a run folder that was made for a job that the cluster refused."""
    if newest_attempt(run) or job_records(run):
        return
    for path in (run / JOBS).glob("*"):
        path.unlink()
    for name in (RECORD_FILE, STATUS_FILE, CONFIG_FILE):
        (run / name).unlink(missing_ok=True)
    for folder in (run / JOBS, run):
        # Files of the user stay.
        with contextlib.suppress(OSError):
            folder.rmdir()


def show_script(config: RunConfig, *, cluster: str, profile: Profile) -> str:
    """The batch script that :func:`submit` would send to Slurm. Nothing is made or changed.

    Raises:
        UserError: the profile or the configuration is not complete or not valid, or the folder holds another run.
    """
    check_resources(cluster, profile, dry_run=True)
    check_input(config, profile)
    run = Path(config.run) if config.run else Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_place(run, config)
    return submission_script((run / JOBS).absolute(), config.name, profile)


def _send(executor: Any, folders: Sequence[RunFolder], stage_jobs: Sequence[StageJob]) -> list[Any]:
    """Mark the runs as queued and hand their jobs to the executor; if it refuses them, the runs are as before."""
    # A run that is done keeps its status; otherwise it would be trained again.
    unfinished = [folder for folder in folders if not folder.done]
    before = [(folder.record.get("status", "failed"), folder.record.get("error")) for folder in unfinished]
    # Before the submission, because a job that starts at once writes the record too.
    for folder in unfinished:
        last = latest_job(folder.path)
        keep_last_end(folder, last.place(folder.path) if last else None, last.job if last else "")
        folder.update(
            kind=folder.config.kind,
            name=folder.config.name,
            steps=steps_of(folder.decided_config),
            status="queued",
            error="",
        )
    slurm_conf = os.environ.get("SLURM_CONF")
    # A job that is submitted from inside another job must not inherit that job's variables.
    with submitit.helpers.clean_env():
        if slurm_conf is not None:
            os.environ["SLURM_CONF"] = slurm_conf
        said = io.StringIO()
        try:
            # Submitit prints what sbatch says; in an error the reason has it already.
            with contextlib.redirect_stderr(said):
                jobs = (
                    [executor.submit(stage_jobs[0])]
                    if len(stage_jobs) == 1
                    else executor.submit_array(stage_jobs)
                )
            print(said.getvalue(), end="", file=sys.stderr)
            return list(jobs)
        except (FailedSubmissionError, FailedJobError) as error:
            reason = f"the cluster refused the job: {_slurm_words(str(error))}"
            for folder, (status, words) in zip(unfinished, before, strict=True):
                folder.update(status=status, error=words or reason)
            raise UserError(reason) from None


def _slurm_words(text: str) -> str:
    """What sbatch said, without the general line at the end if others are more specific."""
    lines = [line.strip().removeprefix("sbatch: error: ") for line in text.splitlines()]
    general = "Batch job submission failed: "
    special = [line for line in lines if line and not line.startswith(general)]
    return "; ".join(dict.fromkeys(special)) or "; ".join(
        line.removeprefix(general) for line in lines if line
    )

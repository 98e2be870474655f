"""Submitit executors for each cluster, built from the same profile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import submitit

from pscl_hpc.errors import UserError
from pscl_hpc.launch.batch_script import REFERENCE, python_command, sbatch_parameters
from pscl_hpc.launch.local import NO_LIMIT_MIN, RETRIES, LocalProcessExecutor
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.schedulers import run_slurm

_SINFO_TIMEOUT_S = 10
_MAX_TIMEOUTS = 100
"""How often a job is requeued after its time limit."""


class BackgroundSrunExecutor(submitit.SlurmExecutor):
    """Submitit's executor, with srun in the background of the batch script.

    A shell runs no trap while it waits for a foreground command, but this one has to decide what becomes of the job
    while Slurm is ending it.
    """

    @property
    def _submitit_command_str(self) -> str:
        return f"{super()._submitit_command_str} 2>&3 &"

    @classmethod
    def affinity(cls) -> int:
        """Also usable without Slurm, to show the script; :func:`check_resources` runs before a submission."""
        return 2


def default_cluster() -> Literal["local", "slurm"]:
    """``slurm`` if its commands are installed and a controller answers, else ``local``.

    Many machines have the commands without being part of a cluster.
    """
    answer = run_slurm("sinfo", "--noheader", timeout=_SINFO_TIMEOUT_S) if _has_slurm() else None
    return "slurm" if answer is not None and answer.returncode == 0 else "local"


def check_resources(cluster: str, profile: Profile, *, dry_run: bool = False) -> None:
    """Check that a job with this profile can be submitted from this machine.

    Raises:
        UserError: the cluster is not available, or a key is missing or not known there.
    """
    if cluster == "slurm":
        if not dry_run and not _has_slurm():
            raise UserError(
                "sbatch and srun are not on this machine; log in to the cluster, or use --cluster local"
            )
        if profile.time is None:
            raise UserError("Slurm needs a time limit; give one with --time, for example --time 4:00:00")
        return
    if dry_run:
        raise UserError("--dry-run shows the batch script of Slurm; add --cluster slurm")
    if profile.nodes > 1:
        raise UserError(f"--nodes {profile.nodes} is for Slurm; leave it out, or add --cluster slurm")
    for key in ("partition", "account", "qos", "constraint", "mem", "setup", "container", "sbatch"):
        if getattr(profile, key):
            raise UserError(f"{key} is for Slurm; leave it out, or add --cluster slurm")
    if profile.gpus:
        visible_gpus(profile.gpus)
    local_environment(profile)


def build_executor(
    cluster: str, files: Path, name: str, profile: Profile, attached: int | None = None
) -> Any:
    """A submitit executor for jobs whose files are in ``files``.

    Args:
        cluster: ``local`` or ``slurm``.
        files: folder of the jobs' files.
        name: name of the jobs.
        profile: the resources, which :func:`check_resources` has accepted.
        attached: as in :class:`~pscl_hpc.launch.local.LocalProcessExecutor`.
    """
    if cluster == "local":
        return _local(files, profile, attached)
    executor = BackgroundSrunExecutor(files, max_num_timeout=_MAX_TIMEOUTS, python=python_command(profile))
    executor.update_parameters(**sbatch_parameters(profile, name, files))
    return executor


def submission_script(files: Path, name: str, profile: Profile) -> str:
    """The batch script that :func:`build_executor` would submit to Slurm; needs no Slurm."""
    executor = build_executor("slurm", files, name, profile)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _has_slurm() -> bool:
    return all(shutil.which(name) for name in ("sbatch", "srun"))


def _local(files: Path, profile: Profile, attached: int | None) -> LocalProcessExecutor:
    executor = LocalProcessExecutor(files, attached, max_num_timeout=_MAX_TIMEOUTS)
    environment = {**local_environment(profile), RETRIES: str(profile.retries)}
    if profile.cpus_per_task is not None:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(profile.cpus_per_task)
    if profile.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus(profile.gpus))
    executor.update_parameters(
        timeout_min=profile.time_min or NO_LIMIT_MIN,
        signal_delay_s=profile.signal_delay,
        tasks_per_node=profile.tasks,
        environment=environment,
    )
    return executor


def local_environment(profile: Profile) -> dict[str, str]:
    """The variables of a profile for a job on this machine, with references to other variables replaced.

    Raises:
        UserError: one names a variable that is not set.
    """
    known = dict(os.environ)
    result: dict[str, str] = {}
    for name, value in profile.environment.items():
        names = [found["plain"] or found["braced"] for found in REFERENCE.finditer(value)]
        if missing := [each for each in names if each not in known]:
            raise UserError(
                f"environment.{name} of the profile names {missing[0]}, which is not set; set it, or leave it out"
            )
        result[name] = known[name] = REFERENCE.sub(
            lambda found: known[found["plain"] or found["braced"]], value
        )
    return result


def visible_gpus(count: int) -> list[str]:
    """The first ``count`` GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(index) for index in range(count)] if given is None else [d for d in given.split(",") if d]
    if len(visible) < count:
        raise UserError(
            f"--gpus-per-node {count}: CUDA_VISIBLE_DEVICES has only {len(visible)}; request fewer"
        )
    return visible[:count]

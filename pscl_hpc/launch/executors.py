"""How an executor is built for each cluster, from the same profile."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import submitit

from pscl_hpc.errors import UserError
from pscl_hpc.launch.batch import python_command, sbatch_parameters
from pscl_hpc.launch.local import NO_LIMIT_MIN, RETRIES, DetachedExecutor
from pscl_hpc.launch.profiles import Profile

ANSWER_S = 10
"""How long Slurm's controller may take to answer."""
RESTARTS = 100
"""How often a job that met its time limit goes on in a new one."""


class WatchedExecutor(submitit.SlurmExecutor):
    """Submitit's, with the tasks in the background of the batch script.

    A shell that waits for a foreground command hears no signal; this one has to decide what becomes of the job while
    Slurm ends it.
    """

    @property
    def _submitit_command_str(self) -> str:
        return f"{super()._submitit_command_str} &"

    @classmethod
    def affinity(cls) -> int:
        """Made without Slurm too, to show the script; :func:`check_resources` is asked before submitting."""
        return 2


def default_cluster() -> Literal["local", "slurm"]:
    """``slurm`` where its commands are and a controller answers, else ``local``.

    Many machines have the commands installed without belonging to a cluster.
    """
    if not _has_slurm():
        return "local"
    try:
        answer = subprocess.run(
            ["sinfo", "--noheader"], stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return "local"
    return "slurm" if answer.returncode == 0 else "local"


def check_resources(cluster: str, profile: Profile, *, dry_run: bool = False) -> None:
    """Whether a job with this profile can be submitted from this machine.

    Raises:
        UserError: when the cluster is not here, needs something, or does not know it.
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
    if profile.gpus_per_node:
        _visible_gpus(profile.gpus_per_node)


def build_executor(cluster: str, files: Path, name: str, profile: Profile) -> Any:
    """A submitit executor for jobs whose files lie in ``files``, for a profile that was checked."""
    if cluster == "local":
        return _local(files, profile)
    executor = WatchedExecutor(files, max_num_timeout=RESTARTS, python=python_command(profile))
    executor.update_parameters(**sbatch_parameters(profile, name, files))
    return executor


def batch_script(files: Path, name: str, profile: Profile) -> str:
    """The text that :func:`build_executor` would submit to Slurm, wherever this runs."""
    executor = build_executor("slurm", files, name, profile)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _has_slurm() -> bool:
    return all(shutil.which(name) for name in ("sbatch", "srun"))


def _local(files: Path, profile: Profile) -> DetachedExecutor:
    executor = DetachedExecutor(files, max_num_timeout=RESTARTS)
    environment = {**profile.environment, RETRIES: str(profile.retries)}
    if profile.cpus_per_task is not None:
        environment["OMP_NUM_THREADS"] = str(profile.cpus_per_task)
    if profile.gpus_per_node:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(_visible_gpus(profile.gpus_per_node))
    executor.update_parameters(
        timeout_min=profile.time_min or NO_LIMIT_MIN,
        signal_delay_s=profile.signal_delay,
        tasks_per_node=profile.tasks,
        environment=environment,
    )
    return executor


def _visible_gpus(count: int) -> list[str]:
    """The first ``count`` GPUs among those that this process may see."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(index) for index in range(count)] if given is None else [d for d in given.split(",") if d]
    if len(visible) < count:
        raise UserError(
            f"--gpus-per-node {count}: CUDA_VISIBLE_DEVICES leaves only {len(visible)}; ask for fewer"
        )
    return visible[:count]

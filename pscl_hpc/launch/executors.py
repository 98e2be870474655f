"""How an executor is built for each cluster, from the same resources."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from pscl_hpc.errors import UserError
from pscl_hpc.launch.local import NO_LIMIT_MIN, DetachedExecutor

CLUSTERS = ("local", "slurm")
SIGNAL_DELAY_S = 120
"""A job hears this long before its time limit that it has to stop; half of the limit where that is less."""
ANSWER_S = 10
"""How long Slurm's controller may take to answer."""
RESTARTS = 100
"""How often a job that met its time limit goes on in a new one."""
_TIME = re.compile(r"^(?:(?:(?P<days>\d+)-)?(?P<hours>\d+):)?(?P<minutes>\d+)(?::(?P<seconds>\d+))?$")


@dataclass(frozen=True)
class Resources:
    """What a job asks for. None leaves it to the cluster."""

    partition: str | None = None
    """Slurm partition."""
    time_min: int | None = None
    """Time limit in minutes; a job that meets it goes on from its last checkpoint in a new one."""
    cpus: int | None = None
    """CPU cores."""
    gpus: int | None = None
    """GPUs."""


def default_cluster() -> str:
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


def parse_time(text: str) -> int:
    """Minutes of ``MINUTES``, ``HOURS:MINUTES:SECONDS`` or ``DAYS-HOURS:MINUTES:SECONDS``, rounded up.

    Raises:
        UserError: for anything else.
    """
    match = _TIME.match(text.strip())
    # Slurm reads A:B as minutes and seconds; a forgotten part would make hours of them, so it is refused.
    if match is None or (match["hours"] is None) != (match["seconds"] is None):
        raise UserError(
            f"--time '{text}' is no time limit; write minutes or D-HH:MM:SS, for example 90 or 1-12:00:00"
        )
    days, hours, minutes, seconds = (int(match[key] or 0) for key in ("days", "hours", "minutes", "seconds"))
    total = days * 1440 + hours * 60 + minutes + -(-seconds // 60)
    if total < 1:
        raise UserError(f"--time '{text}' is no time at all; allow at least one minute")
    return total


def check_resources(cluster: str, resources: Resources) -> None:
    """Whether a job with these resources can be submitted from this machine.

    Raises:
        UserError: when the cluster is not here, needs a resource, or does not know one.
    """
    if cluster == "slurm":
        if not _has_slurm():
            raise UserError(
                "sbatch and srun are not on this machine; log in to the cluster, or use --cluster local"
            )
        if resources.time_min is None:
            raise UserError("Slurm needs a time limit; give one with --time, for example --time 4:00:00")
        return
    if resources.partition is not None:
        raise UserError("--partition is for Slurm; leave it out, or add --cluster slurm")
    if resources.gpus is not None:
        _visible_gpus(resources.gpus)


def build_executor(cluster: str, folder: Path, name: str, resources: Resources) -> Any:
    """A submitit executor for one task whose files lie in ``folder``, for resources that were checked."""
    if cluster == "slurm":
        return _slurm(folder, name, resources)
    return _local(folder, resources)


def _has_slurm() -> bool:
    return all(shutil.which(name) for name in ("sbatch", "srun"))


def _local(folder: Path, resources: Resources) -> DetachedExecutor:
    executor = DetachedExecutor(folder, max_num_timeout=RESTARTS)
    time_min = resources.time_min or NO_LIMIT_MIN
    environment: dict[str, str] = {}
    if resources.cpus is not None:
        environment["OMP_NUM_THREADS"] = str(resources.cpus)
    if resources.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(_visible_gpus(resources.gpus))
    executor.update_parameters(
        timeout_min=time_min,
        signal_delay_s=_signal_delay(time_min),
        tasks_per_node=1,
        environment=environment,
    )
    return executor


def _slurm(folder: Path, name: str, resources: Resources) -> Any:
    assert resources.time_min is not None
    # Until submitit's handler is up, the signal of an early preemption would kill the job.
    executor = submitit.SlurmExecutor(
        folder, max_num_timeout=RESTARTS, python=f"env --ignore-signal=USR2 {shlex.quote(sys.executable)}"
    )
    options = {
        "job_name": name,
        "partition": resources.partition,
        "time": resources.time_min,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": resources.gpus,
    }
    executor.update_parameters(
        **{key: value for key, value in options.items() if value is not None},
        nodes=1,
        ntasks_per_node=1,
        signal_delay_s=_signal_delay(resources.time_min),
        stderr_to_stdout=True,
        # Some sites reject jobs with an accounting key that they do not know.
        wckey=None,
        # srun takes the number of cores from its own variable only (Slurm 22.05 and later).
        setup=['export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"'],
        srun_args=["--kill-on-bad-exit=1"],
        additional_parameters={"requeue": True},
    )
    return executor


def _signal_delay(time_min: int) -> int:
    return min(SIGNAL_DELAY_S, time_min * 60 // 2)


def _visible_gpus(count: int) -> list[str]:
    """The first ``count`` GPUs among those that this process may see."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(index) for index in range(count)] if given is None else [d for d in given.split(",") if d]
    if len(visible) < count:
        raise UserError(f"--gpus {count}: CUDA_VISIBLE_DEVICES leaves only {len(visible)}; ask for fewer")
    return visible[:count]

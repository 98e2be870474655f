"""``segment`` as a job: packed here, trained and measured there."""

from __future__ import annotations

from pathlib import Path

from pscl_hpc.launch.executors import default_cluster
from pscl_hpc.launch.profiles import Profile, load_profile
from pscl_hpc.launch.submission import Submission, submit
from pscl_hpc.workflow.request import Request
from pscl_hpc.workflow.segment import JOB_ENTRY, Say, prepare


def submit_segment(
    request: Request,
    out: Path,
    *,
    cluster: str | None = None,
    profile: str | None = None,
    partition: str | None = None,
    time: str | None = None,
    gpus_per_node: int | None = None,
    say: Say = lambda text: None,
) -> Submission:
    """Pack the archive, and submit a job that does the rest.

    Args:
        request, out, say: As for :func:`~pscl_hpc.workflow.segment.segment`.
        cluster: ``local`` or ``slurm``; None: Slurm where it answers.
        profile, partition, time, gpus_per_node: Resources, as for ``pscl-hpc submit``.

    Raises:
        UserError: an input is wrong, or the cluster refuses the job.
    """
    resources = (load_profile(profile) if profile else Profile()).replace(
        "command line", partition=partition, time=time, gpus_per_node=gpus_per_node
    )
    prepared = prepare(request, out, say=say)
    return submit(prepared.config, cluster=cluster or default_cluster(), profile=resources, entry=JOB_ENTRY)

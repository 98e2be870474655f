"""Where the jobs of a study run."""

from __future__ import annotations

from pscl_hpc.study.pool_executor import ProcessPool, visible_gpus
from pscl_hpc.study.schedule import Executor


def make_executor(cluster: str, *, threads: int) -> Executor:
    """The executor of a cluster."""
    return ProcessPool(threads, visible_gpus())

"""What a node must have before its ranks start: memory, a run folder that can be written, the right time.

GPUs are checked by each rank (:mod:`pscl_hpc.launch.stage_job`), and messages between the ranks when they join
(:mod:`pscl_hpc.training.ranks`).
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

from pscl_hpc.errors import JobError
from pscl_hpc.files import is_no_space
from pscl_hpc.launch.ends import PROBE_BYTES
from pscl_hpc.limits import available_memory

RANK_MB = 512
"""Memory that a rank needs at least: Python, torch and a small network."""
CLOCK_S = 60
"""Seconds by which the clocks of a node and of the run folder's file system may differ without a warning."""
_MB = 1 << 20


class BadNodeError(JobError):
    """A node that cannot run its ranks; another one may.

    Args:
        node: Its name.
        reason: One sentence.
    """

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"node {node}: {reason}")
        self.node = node


def check_node(node: str, run: Path, ranks: int) -> list[str]:
    """Check this node once, before its ranks start.

    Args:
        node: Its name, for messages.
        run: The run folder.
        ranks: Number of ranks on this node.

    Returns:
        Warnings.

    Raises:
        BadNodeError: there is too little memory, or the run folder cannot be written from here.
        JobError: the disk of the run folder is full, for every node.
    """
    free = available_memory()
    if free is not None and free < ranks * RANK_MB * _MB:
        raise BadNodeError(
            node,
            f"{free // _MB} MB of memory are free for {ranks} rank(s), which need {RANK_MB} MB each; request more with "
            "mem in the profile, or find out what else runs there",
        )
    skew = _write_there(node, run)
    _room_for_checkpoint(run)
    if abs(skew) > CLOCK_S:
        way = "ahead of" if skew > 0 else "behind"
        return [
            f"warning: node {node}: its clock is {abs(skew):.0f} s {way} that of the file system of {run}; times in logs "
            "and status are wrong by as much, so tell the administrator"
        ]
    return []


def _write_there(node: str, run: Path) -> float:
    """Write a file into the run folder; the seconds by which this machine's clock is ahead of the file's time."""
    try:
        before = time.time()
        with tempfile.NamedTemporaryFile(dir=run, prefix=".node-", suffix=".tmp") as file:
            file.write(os.urandom(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
            there = os.stat(file.name).st_mtime
        after = time.time()
    except OSError as error:
        if is_no_space(error):
            raise JobError(f"{run}: cannot be written ({error.strerror}); free space there") from error
        raise BadNodeError(
            node,
            f"cannot write into {run} ({error.strerror or error}); check that the file system is mounted there",
        ) from error
    return before - there if before > there else min(0.0, after - there)


def _room_for_checkpoint(run: Path) -> None:
    """JobError if the disk has less space than the newest checkpoint takes: the next one would fail."""
    sizes = [(path.name, path.stat().st_size) for path in (run / "checkpoints").glob("step-*.pt")]
    free = shutil.disk_usage(run).free
    if sizes and free < max(sizes)[1]:
        text = os.strerror(errno.ENOSPC)
        raise JobError(
            f"{run}: {free / _MB:.0f} MB are free, less than a checkpoint of {max(sizes)[1] / _MB:.0f} MB ({text}); "
            "free space there"
        )

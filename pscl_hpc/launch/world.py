"""The ranks of a job, as the scheduler made them, handed on in torchrun's variables."""

from __future__ import annotations

import os
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pscl_hpc.errors import UserError

RESTARTS_LOCAL = "PSCL_HPC_RESTARTS"
"""Variable that counts the restarts of a local job; Slurm has its own."""
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT, _PORTS_MIN = 10000, 1000


@dataclass(frozen=True)
class World:
    """One task of a job."""

    rank: int
    world: int
    local_rank: int
    nodes: int
    node: str
    """Name of this task's node."""
    address: str
    """Name of the first task's node."""
    job: str
    """The job's id, of an array with its place."""
    port_key: str
    restart: int
    """How often the job was started before."""

    @classmethod
    def find(cls, environment: Any) -> World:
        """Of this process, from submitit's ``JobEnvironment``."""
        slurm = environment.cluster == "slurm"
        return cls(
            rank=environment.global_rank,
            world=environment.num_tasks,
            local_rank=environment.local_rank,
            nodes=environment.num_nodes,
            node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            address=environment.hostnames[0] if slurm else "127.0.0.1",
            job=environment.job_id,
            port_key=environment.raw_job_id,
            restart=int(os.environ.get("SLURM_RESTART_COUNT" if slurm else RESTARTS_LOCAL, "0") or 0),
        )

    def check(self, nodes: int, tasks_per_node: int) -> None:
        """Whether this is what was asked for.

        Raises:
            UserError: when the scheduler started other ranks.
        """
        asked, found = nodes * tasks_per_node, (self.world, self.nodes)
        if found != (asked, nodes) or self.local_rank >= tasks_per_node or self.rank >= asked:
            raise UserError(
                f"job {self.job} asked for {nodes} x {tasks_per_node} ranks, but rank {self.rank} (local rank "
                f"{self.local_rank}) on {self.node} finds {self.world} on {self.nodes} nodes; check the profile's "
                "setup, environment and sbatch options, and submit again"
            )

    def export(self, tasks_per_node: int) -> None:
        """Set what ``pscl_hpc.training.ranks`` reads. CUDA_VISIBLE_DEVICES stays as the scheduler set it."""
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world),
            LOCAL_RANK=str(self.local_rank),
            LOCAL_WORLD_SIZE=str(tasks_per_node),
            MASTER_ADDR=self.address,
            MASTER_PORT=str(rendezvous_port(self.port_key, self.restart)),
            PSCL_NODE=self.node,
        )

    def greeting(self) -> str:
        """The first line of a rank's log; :func:`pscl_hpc.launch.jobs.ranks_of_node` reads it."""
        again = f", restart {self.restart}" if self.restart else ""
        return f"rank {self.rank} of {self.world} on {self.node}: job {self.job}{again}"


def rendezvous_port(job: str, restart: int, ephemeral: Path = _EPHEMERAL) -> int:
    """The port at which the ranks meet: the same on all, another after a restart.

    An orphan of the attempt before may still hold the old port. Ports that the kernel hands out to clients are left
    out: one of them may be taken at any moment.
    """
    try:
        low, high = (int(word) for word in ephemeral.read_text().split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    ranges = [(_FIRST_PORT, min(low, 65536)), (high + 1, 65536), (_FIRST_PORT, 65536)]
    start, end = next((a, b) for a, b in ranges if b - a >= _PORTS_MIN)
    return start + zlib.crc32(f"{job} {restart}".encode()) % (end - start)

"""One task of a job: its rank, as the scheduler set it, passed on in torchrun's environment variables."""

from __future__ import annotations

import os
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pscl_hpc.errors import UserError
from pscl_hpc.runs.provenance import START

RESTARTS_LOCAL = "PSCL_HPC_RESTARTS"
"""Environment variable that counts the restarts of a local job; Slurm has its own."""
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT, _PORTS_MIN = 10000, 1000


@dataclass(frozen=True)
class Task:
    """One process (rank) of a job."""

    rank: int
    ranks: int
    local_rank: int
    nodes: int
    node: str
    """Name of this task's node."""
    address: str
    """Name of rank 0's node."""
    job: str
    """Job id; for a job of an array ARRAY_INDEX."""
    port_key: str
    restart: int
    """How often the job has been restarted."""

    @classmethod
    def find(cls, environment: Any) -> Task:
        """The task that this process is, from submitit's ``JobEnvironment``."""
        slurm = environment.cluster == "slurm"
        return cls(
            rank=environment.global_rank,
            ranks=environment.num_tasks,
            local_rank=environment.local_rank,
            nodes=environment.num_nodes,
            node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            address=environment.hostnames[0] if slurm else "127.0.0.1",
            job=environment.job_id,
            port_key=environment.raw_job_id,
            restart=int(os.environ.get("SLURM_RESTART_COUNT" if slurm else RESTARTS_LOCAL, "0") or 0),
        )

    def check(self, nodes: int, tasks_per_node: int) -> None:
        """Check that the scheduler started the ranks that were requested.

        Raises:
            UserError: it started others.
        """
        wanted = nodes * tasks_per_node
        if (
            (self.ranks, self.nodes) != (wanted, nodes)
            or self.local_rank >= tasks_per_node
            or self.rank >= wanted
        ):
            raise UserError(
                f"job {self.job} requested {nodes} x {tasks_per_node} ranks, but rank {self.rank} (local rank "
                f"{self.local_rank}) on {self.node} finds {self.ranks} ranks on {self.nodes} nodes; check the profile's "
                "setup, environment and sbatch options, and submit again"
            )

    def export(self, tasks_per_node: int) -> None:
        """Set the variables that ``pscl_hpc.training.ranks`` reads. CUDA_VISIBLE_DEVICES is left as it is."""
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.ranks),
            LOCAL_RANK=str(self.local_rank),
            LOCAL_WORLD_SIZE=str(tasks_per_node),
            MASTER_ADDR=self.address,
            MASTER_PORT=str(rendezvous_port(self.port_key, self.restart)),
            PSCL_NODE=self.node,
            **{START: f"{self.job}.{self.restart}"},
        )

    def first_line(self) -> str:
        """The first line of a rank's log; :func:`pscl_hpc.launch.control.ranks_of_node` parses it."""
        again = f", restart {self.restart}" if self.restart else ""
        return f"rank {self.rank} of {self.ranks} on {self.node}: job {self.job}{again}"


def rendezvous_port(job: str, restart: int, ephemeral: Path = _EPHEMERAL) -> int:
    """The port at which the ranks meet: the same on all ranks, a different one after a restart.

    An orphan of the previous attempt may still hold the old port. The kernel's ephemeral ports are excluded, since any
    client may be given one of them at any moment.
    """
    try:
        low, high = (int(word) for word in ephemeral.read_text().split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    ranges = [(_FIRST_PORT, min(low, 65536)), (high + 1, 65536), (_FIRST_PORT, 65536)]
    start, end = next((a, b) for a, b in ranges if b - a >= _PORTS_MIN)
    return start + zlib.crc32(f"{job} {restart}".encode()) % (end - start)

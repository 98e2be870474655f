"""Starts processes as ranks, with torchrun's variables and without torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(
    world: int, command: list[str], *, present: int | None = None, nodes: tuple[str, ...] = ()
) -> list[subprocess.Popen[str]]:
    """``world`` ranks (or the first ``present`` of them) that run ``python command``, with their output in pipes."""
    port = free_port()
    processes = []
    for rank in range(world if present is None else present):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PSCL_NODE": nodes[rank] if nodes else f"node{rank}",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes

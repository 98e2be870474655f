"""Starts processes as ranks, with torchrun's variables and without torchrun, and compares what they computed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.helpers import PATIENCE_S

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


def results_of_two(worker: Path, arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks of a script saved as ``FOLDER/<rank>.pt``."""
    processes = start_ranks(2, [str(worker), *arguments])
    outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same_training(found: dict[str, Any], wanted: dict[str, Any], slack: float = 1e-13) -> None:
    """The same gradients in each step, and the same state after the last, of trainings in float64."""
    for step, (ours, theirs) in enumerate(zip(found["gradients"], wanted["gradients"], strict=True)):
        assert ours.keys() == theirs.keys()
        # The first step is exact; later ones start from weights that differ by Adam's division of rounding errors.
        tolerance = 1e-9 if step == 0 else 1e-6
        for key, gradient in theirs.items():
            size = float(gradient.abs().max())
            torch.testing.assert_close(
                ours[key], gradient, rtol=tolerance, atol=tolerance * size + slack,
                msg=lambda text, key=key: f"{key}: {text}",
            )  # fmt: skip
    for key, value in wanted["state"].items():
        torch.testing.assert_close(
            found["state"][key], value, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
        )

"""Starts ranks of the queue loss and compares the sum of what they computed with the oracle on all rows at once."""

import subprocess
import sys
from pathlib import Path

import torch

from .queue_cases import case, truth
from .queue_rank_worker import CASES, ENTRIES, TAU, D, N


def compare_queue_ranks_with_oracle(
    world: int, folder: Path, dtype: str, backends: list[str], rtol: float, atol: float
):
    command = [sys.executable, str(Path(__file__).with_name("queue_rank_worker.py"))]
    processes = [
        subprocess.Popen([*command, str(rank), str(world), str(folder), dtype, *backends])
        for rank in range(world)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * world
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for kind in CASES:
        q, k, queue, options = case(kind, N, ENTRIES, D, getattr(torch, dtype))
        loss, dq, dk, dtau = truth(q, k, queue, options, TAU)
        for backend in backends:
            parts = list(zip(*(rank[f"{kind} {backend}"] for rank in ranks), strict=True))
            together = (sum(parts[0]), torch.cat(parts[1]), torch.cat(parts[2]), sum(parts[3]))
            for ours, true in zip(together, (loss, dq, dk, dtau), strict=True):
                torch.testing.assert_close(ours, true, rtol=rtol, atol=atol)

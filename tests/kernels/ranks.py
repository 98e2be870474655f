"""Starts ranks and compares their results with the oracle on all rows at once and, bit by bit, with one rank."""

import subprocess
import sys
from pathlib import Path

import torch

from pscl_kernels import patch_similarity_stats
from tests.helpers import PATIENCE_S

from . import queue_cases, queue_rank_worker
from .cases import grouping, rows, truth
from .rank_worker import CASES, D, N, aligned_results


def results_of(worker: str, world: int, folder: Path, dtype: str, backends: list[str]) -> list[dict]:
    """Run a worker script once per rank and load the results."""
    command = [sys.executable, str(Path(__file__).with_name(worker))]
    processes = [
        subprocess.Popen([*command, str(rank), str(world), str(folder), dtype, *backends])
        for rank in range(world)
    ]
    assert [process.wait(timeout=PATIENCE_S) for process in processes] == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def compare_ranks_with_oracle(
    world: int, folder: Path, dtype: str, backends: list[str], rtol: float, atol: float
):
    ranks = results_of("rank_worker.py", world, folder, dtype, backends)
    for kind, tau in CASES[dtype]:
        q, k = rows(world * N, D, getattr(torch, dtype))
        groups = grouping(kind, world * N)
        exact = truth(q, k, groups, tau)
        for backend in backends:
            parts = [rank[f"{kind} {tau} {backend}"] for rank in ranks]
            assert len({part[0].item() for part in parts}) == 1
            for part in parts:
                torch.testing.assert_close(part[3], exact[3], rtol=rtol, atol=atol)
            torch.testing.assert_close(parts[0][0], exact[0], rtol=rtol, atol=atol)
            for of_view in (1, 2):
                together = torch.cat([part[of_view] for part in parts])
                torch.testing.assert_close(together, exact[of_view], rtol=rtol, atol=atol)
        for rank in ranks:
            wanted = patch_similarity_stats(q, k, groups)
            torch.testing.assert_close(rank[f"{kind} {tau}"], wanted, equal_nan=True)
    for backend in backends:
        if backend == "reference":
            continue
        for case, alone in enumerate(aligned_results(0, 1, None, dtype, backend)):
            parts = [rank[f"aligned {backend}"][case] for rank in ranks]
            for loss, _, _, dtau in parts:
                assert torch.equal(loss, alone[0])
                assert torch.equal(dtau, alone[3])
            for of_view in (1, 2):
                assert torch.equal(torch.cat([part[of_view] for part in parts]), alone[of_view])
    for rank in ranks:
        for backend in backends:
            assert "(3, 2)" in rank[backend]  # the error names the shapes


def compare_queue_ranks_with_oracle(
    world: int, folder: Path, dtype: str, backends: list[str], rtol: float, atol: float
):
    """The shares of the ranks add up to the oracle's loss and gradients."""
    ranks = results_of("queue_rank_worker.py", world, folder, dtype, backends)
    for kind in queue_rank_worker.CASES:
        q, k, queue, options = queue_rank_worker.inputs(kind, dtype)
        loss, grad_q, grad_k, dtau = queue_cases.truth(q, k, queue, options, queue_rank_worker.TAU)
        for backend in backends:
            parts = list(zip(*(rank[f"{kind} {backend}"] for rank in ranks), strict=True))
            together = (sum(parts[0]), torch.cat(parts[1]), torch.cat(parts[2]), sum(parts[3]))
            for ours, true in zip(together, (loss, grad_q, grad_k, dtau), strict=True):
                torch.testing.assert_close(ours, true, rtol=rtol, atol=atol)

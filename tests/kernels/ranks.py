"""Starts ranks and compares what they computed with the oracle on all rows at once, and with one rank bit by bit."""

import subprocess
import sys
from pathlib import Path

import torch

from pscl_kernels import patch_similarity_stats

from .cases import grouping, rows, truth
from .rank_worker import CASES, D, N, aligned_results


def compare_ranks_with_oracle(
    world: int, folder: Path, dtype: str, backends: list[str], rtol: float, atol: float
):
    worker = str(Path(__file__).with_name("rank_worker.py"))
    command = [sys.executable, worker]
    processes = [
        subprocess.Popen([*command, str(rank), str(world), str(folder), dtype, *backends])
        for rank in range(world)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * world
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
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
            assert "same number of rows" in rank[backend]

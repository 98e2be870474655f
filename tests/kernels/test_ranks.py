"""One rank against several: the same loss, the same gradients."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pscl_kernels import patch_nt_xent, patch_similarity_stats

from .cases import grouping, loss_and_gradients, rows, truth

N, D = 26, 12
CASES = [("none", 0.5), ("four", 0.1), ("absent", 0.3), ("one", 0.5), ("four", 0.01)]


def everything(world, kind):
    q, k = rows(world * N, D)
    return q, k, grouping(kind, world * N)


def on_rank(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    group = dist.group.WORLD
    mine = slice(rank * N, (rank + 1) * N)
    results = {}
    for kind, tau in CASES:
        q, k, groups = everything(world, kind)
        groups = None if groups is None else groups[mine]
        for backend in ("reference", "chunked"):
            results[kind, tau, backend] = loss_and_gradients(
                lambda a, b, t, g=groups, name=backend: patch_nt_xent(
                    a, b, g, temperature=t, process_group=group, backend=name
                ),
                q[mine],
                k[mine],
                tau,
            )
        results[kind, tau, "stats"] = patch_similarity_stats(q[mine], k[mine], groups, group)
    for backend in ("reference", "chunked"):
        uneven = torch.ones(3 + rank, 2)
        try:
            patch_nt_xent(uneven, uneven, process_group=group, backend=backend)
        except ValueError as error:
            results[backend] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_agree_with_one(world, tmp_path):
    mp.spawn(on_rank, args=(world, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for kind, tau in CASES:
        q, k, groups = everything(world, kind)
        exact = truth(q, k, groups, tau)
        for backend in ("reference", "chunked"):
            parts = [rank[kind, tau, backend] for rank in ranks]
            assert len({part[0].item() for part in parts}) == 1
            together = (
                parts[0][0],
                torch.cat([part[1] for part in parts]),
                torch.cat([part[2] for part in parts]),
                parts[-1][3],
            )
            for mine, true in zip(together, exact, strict=True):
                torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)
        for rank in ranks:
            torch.testing.assert_close(
                rank[kind, tau, "stats"], patch_similarity_stats(q, k, groups), equal_nan=True
            )
    for rank in ranks:
        for backend in ("reference", "chunked"):
            assert "same number of rows" in rank[backend]

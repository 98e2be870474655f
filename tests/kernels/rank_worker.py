"""One rank of `test_shards.py` and `triton_patch_nt_xent.py`: `rank_worker.py RANK WORLD FOLDER DTYPE BACKEND...`.

Writes `FOLDER/RANK.pt`: per case and backend the loss and gradients of this rank, the statistics, the results if every
rank has whole shards, and the error if the ranks pass different numbers of rows.
"""

import os
import sys

import pytest
import torch
import torch.distributed as dist

from pscl_kernels import patch_nt_xent, patch_similarity_stats
from pscl_kernels.patch_nt_xent import rows as row_module

if __name__ == "__main__":
    from cases import grouping, loss_and_gradients, rows
else:
    from .cases import grouping, loss_and_gradients, rows

N, D = 26, 12
CASES = {"float64": [("none", 0.5), ("four", 0.1), ("absent", 0.3), ("one", 0.5), ("four", 0.01)]}
CASES["float32"] = [("none", 0.2), ("absent", 0.2)]

SHARD = {"chunked": 32, "triton": 16}  # pairs of a small shard
SHARDS = 6  # of all ranks together
ALIGNED_CASES = {
    "chunked": [("none", 0.2), ("four", 0.1), ("absent", 0.3), ("unbalanced", 0.01)],
    "triton": [("four", 0.1), ("absent", 0.01)],
}


def aligned_results(rank: int, world: int, group: dist.ProcessGroup | None, dtype: str, backend: str) -> list:
    """Per case (loss, grad_q, grad_k, dtau) of this rank, of SHARDS shards that `world` ranks share, in small tiles."""
    pairs = SHARD[backend]
    n = pairs * SHARDS
    mine = slice(rank * n // world, (rank + 1) * n // world)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_module, "SHARD_PAIRS", pairs)
        patch.setattr(row_module, "TILE_CPU", pairs)
        if backend == "triton":
            from pscl_kernels.patch_nt_xent.triton import tiling

            for name in ("forward_config", "backward_config"):
                patch.setattr(tiling, name, lambda *_: tiling.Config(2 * pairs, pairs, 4, 1))
        for kind, tau in ALIGNED_CASES[backend]:
            q, k = (x[mine] for x in rows(n, D, getattr(torch, dtype)))
            groups = grouping(kind, n)
            groups = None if groups is None else groups[mine]
            results.append(
                loss_and_gradients(
                    lambda a, b, t, g=groups: patch_nt_xent(
                        a, b, g, temperature=t, process_group=group, backend=backend
                    ),
                    q,
                    k,
                    tau,
                )
            )
    return results


def main(rank: int, world: int, folder: str, dtype: str, backends: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    group = dist.group.WORLD
    mine = slice(rank * N, (rank + 1) * N)
    results = {}
    for kind, tau in CASES[dtype]:
        q, k = (x[mine] for x in rows(world * N, D, getattr(torch, dtype)))
        groups = grouping(kind, world * N)
        groups = None if groups is None else groups[mine]
        for backend in backends:
            results[f"{kind} {tau} {backend}"] = loss_and_gradients(
                lambda a, b, t, g=groups, name=backend: patch_nt_xent(
                    a, b, g, temperature=t, process_group=group, backend=name
                ),
                q,
                k,
                tau,
            )
        results[f"{kind} {tau}"] = patch_similarity_stats(q, k, groups, group)
    for backend in backends:
        if backend != "reference":
            results[f"aligned {backend}"] = aligned_results(rank, world, group, dtype, backend)
        uneven = torch.ones(3 + rank, 2)
        try:
            patch_nt_xent(uneven, uneven, process_group=group, backend=backend)
        except ValueError as error:
            results[backend] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    # Threads of torch have aborted a rank in the teardown of the interpreter, after all of its work.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])

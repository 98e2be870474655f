"""One rank of `test_ranks.py` and `interpreted.py`: `rank_worker.py RANK WORLD FOLDER DTYPE BACKEND...`.

Writes `FOLDER/RANK.pt`: per case and backend the loss and gradients of this rank, the statistics, and what is said when
the ranks pass different numbers of rows.
"""

import sys

import torch
import torch.distributed as dist

from pscl_kernels import patch_nt_xent, patch_similarity_stats

if __name__ == "__main__":
    from cases import grouping, loss_and_gradients, rows

N, D = 26, 12
CASES = {"float64": [("none", 0.5), ("four", 0.1), ("absent", 0.3), ("one", 0.5), ("four", 0.01)]}
CASES["float32"] = [("none", 0.2), ("absent", 0.2)]


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
        uneven = torch.ones(3 + rank, 2)
        try:
            patch_nt_xent(uneven, uneven, process_group=group, backend=backend)
        except ValueError as error:
            results[backend] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])

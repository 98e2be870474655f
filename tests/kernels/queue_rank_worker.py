"""One rank of the tests of the queue loss: `queue_rank_worker.py RANK WORLD FOLDER DTYPE BACKEND...`.

Writes `FOLDER/RANK.pt`: per case and backend the loss and gradients of this rank's share of the rows.
"""

import os
import sys

import torch
import torch.distributed as dist

from pscl_kernels import queue_info_nce

if __name__ == "__main__":
    from cases import loss_and_gradients
    from queue_cases import case
else:
    from .cases import loss_and_gradients
    from .queue_cases import case

N, ENTRIES, D, TAU = 23, 40, 8, 0.2
CASES = ("plain", "dense", "normalised", "nobody")
ROWS_OF_QUEUE = ("queue_groups", "queue_subgroups", "same_weight", "any_weight")


def inputs(kind: str, dtype: str) -> tuple:
    """q, k, queue and the further arguments of all ranks together."""
    return case(kind, N, ENTRIES, D, getattr(torch, dtype))


def share(rank: int, world: int) -> slice:
    """Rows of a rank; the first rank has more than the others."""
    each = N // (world + 1)
    return slice(0 if rank == 0 else N - (world - rank) * each, N - (world - 1 - rank) * each)


def main(rank: int, world: int, folder: str, dtype: str, backends: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    mine = share(rank, world)
    results = {}
    for kind in CASES:
        q, k, queue, options = inputs(kind, dtype)
        own = {
            name: value if name in ROWS_OF_QUEUE or isinstance(value, bool) else value[mine]
            for name, value in options.items()
        }
        for backend in backends:
            results[f"{kind} {backend}"] = loss_and_gradients(
                lambda a, b, t, o=own, c=queue, name=backend: queue_info_nce(
                    a, b, c, **o, temperature=t, process_group=dist.group.WORLD, backend=name
                ),
                q[mine],
                k[mine],
                TAU,
            )
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    # Threads of torch have aborted a rank in the teardown of the interpreter, after all of its work.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])

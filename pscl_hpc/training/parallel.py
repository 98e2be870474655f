"""A module trained by several ranks at once."""

# No postponed annotations here: torch checks those of a communication hook as they are.
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel


def data_parallel(module: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    """``module`` with gradients SUMMED over the ranks of ``group``, where torch would average; itself without a group.

    Buffers are left alone: what changes them must do so alike on all ranks.
    """
    if group is None:
        return module
    # Weights of 1x1 convolutions have the same numbers in either layout of memory.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        # The name of broadcast_buffers changes from one version of torch to the next.
        warnings.simplefilter("ignore", FutureWarning)
        parallel = DistributedDataParallel(
            _WithSpare(module),
            process_group=group,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            # Some methods leave parts of the trunk out of their loss. It also keeps torch from ordering its buckets
            # anew after the first step, by which a resumed run would add in another order than an uninterrupted one.
            find_unused_parameters=True,
        )
    parallel.register_comm_hook(group, _sum)
    return parallel


class _WithSpare(nn.Module):
    """A module with one more parameter that no loss uses: without any, torch complains that it looked for them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.spare = nn.Parameter(next(module.parameters()).new_zeros(()))

    def forward(self, *arguments: Any) -> Any:
        return self.module(*arguments)


def _sum(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    work: Any = dist.all_reduce(bucket.buffer(), group=group, async_op=True)

    def result(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        return future.value()[0]

    summed: torch.futures.Future[Tensor] = work.get_future().then(result)
    return summed

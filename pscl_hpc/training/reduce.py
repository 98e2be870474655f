"""Sums over the ranks: of values, of losses, and of gradients."""

# Without postponed annotations: torch checks those of a communication hook as they are.
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel


@torch.no_grad()
def sum_over_ranks(value: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Sum of a tensor over the ranks, without gradient; the tensor itself for one process."""
    if process_group is None:
        return value.detach()
    value = value.detach().clone()
    dist.all_reduce(value, group=process_group)
    return value


def whole_loss(own: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Sum of each rank's share, with the gradient of this rank's share.

    The value is equal on every rank. The gradients of parameters summed over the ranks are those of the whole. Shares
    can be losses, or sums from which every rank then computes the same loss.
    """
    if process_group is None:
        return own
    # The difference is exactly zero: it carries the gradient and leaves the value the same on every rank.
    return sum_over_ranks(own, process_group) + (own - own.detach())


def mean_over_ranks(total: Tensor, count: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """``total / count`` of the whole batch from this rank's sum and number; 0 where nothing is counted on any rank."""
    return whole_loss(total / sum_over_ranks(count, process_group).clamp_min(1), process_group)


@torch.no_grad()
def sum_gradients(module: nn.Module, process_group: dist.ProcessGroup | None) -> None:
    """Sum the gradients of all parameters over the ranks, for a module outside of :func:`data_parallel`.

    A parameter without gradient on every rank keeps none.
    """
    if process_group is None:
        return
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    has = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=trained[0].device)
    used = [p for p, count in zip(trained, sum_over_ranks(has, process_group).tolist(), strict=True) if count]
    for dtype in dict.fromkeys(parameter.dtype for parameter in used):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used if p.dtype == dtype]
        total = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]), process_group)
        parts = iter(torch.split(total, [gradient.numel() for gradient in gradients]))
        for parameter in used:
            if parameter.dtype == dtype:
                parameter.grad = next(parts).view_as(parameter)


def data_parallel(module: nn.Module, process_group: dist.ProcessGroup | None) -> nn.Module:
    """``module`` with gradients SUMMED over the ranks (torch averages them); the module itself for one process.

    Buffers are not synchronised: whatever changes them must change them equally on all ranks.
    """
    if process_group is None:
        return module
    # Weights of 1x1 convolutions have the same numbers in either memory layout.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        # broadcast_buffers is renamed between the supported versions of torch.
        warnings.simplefilter("ignore", FutureWarning)
        parallel = DistributedDataParallel(
            _WithUnused(module),
            process_group=process_group,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            # Some methods leave parts of the trunk out of their loss. This also keeps torch from reordering its buckets
            # after the first step, which would make a resumed run add in another order than an uninterrupted one.
            find_unused_parameters=True,
        )
    parallel.register_comm_hook(process_group, _sum)
    return parallel


class _WithUnused(nn.Module):
    """A module with an additional parameter that no loss uses: torch warns when it searched and found none."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.unused = nn.Parameter(next(module.parameters()).new_zeros(()))

    def forward(self, *arguments: Any) -> Any:
        return self.module(*arguments)


def _sum(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    work: Any = dist.all_reduce(bucket.buffer(), group=group, async_op=True)

    def result(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        return future.value()[0]

    summed: torch.futures.Future[Tensor] = work.get_future().then(result)
    return summed

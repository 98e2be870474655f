"""Collectives of the operations that use rows of several ranks."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

# Renamed in torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def name_and_size(process_group: dist.ProcessGroup | None) -> tuple[str, int]:
    """Name and world size of `process_group`; ("", 1) for None, which means this process only.

    Operators take the name, because their arguments must be plain values or tensors.
    """
    if process_group is None:
        return "", 1
    return process_group.group_name, process_group.size()


def rank_in(group_name: str) -> int:
    """Rank of this process in the group of that name; 0 for ""."""
    return dist.get_rank(_resolve(group_name)) if group_name else 0


def start_gather(tensor: Tensor, group_name: str, world_size: int) -> Callable[[], Tensor]:
    """Start a `gather` in the background; the returned function waits for it and returns its result.

    On an accelerator the stream waits, not the host.
    """
    if not group_name:
        return lambda: tensor.unsqueeze(0)
    sent = tensor.contiguous()
    received = sent.new_empty(world_size * sent.numel())
    work = _all_gather(received, sent.view(-1), group=_resolve(group_name), async_op=True)

    def finish(sent: Tensor = sent) -> Tensor:  # keeps the tensor alive until it is sent
        work.wait()
        return received.view(world_size, *tensor.shape)

    return finish


def gather(tensor: Tensor, group_name: str, world_size: int) -> Tensor:
    """`tensor` of every rank stacked along a new first dimension, (world_size, *tensor.shape), in rank order.

    The shape must be the same on every rank. No gradient flows through.
    """
    return start_gather(tensor, group_name, world_size)()


def total(tensor: Tensor, group_name: str) -> Tensor:
    """Sum of `tensor` over the ranks."""
    if group_name:
        tensor = tensor.clone()
        dist.all_reduce(tensor, group=_resolve(group_name))
    return tensor


def check_same_shape(tensor: Tensor, group_name: str, world_size: int) -> None:
    """Raise ValueError on every rank unless the (N, D) `tensor` has the same shape on all ranks.

    On an accelerator the comparison runs on the device, so that the host does not wait. The error is then a device
    assertion, which is raised at the next synchronisation.
    """
    if not group_name:
        return
    # `full` runs on the device; a copy from the host would make it wait.
    sizes = [torch.full((), size, dtype=torch.int64, device=tensor.device) for size in tensor.shape]
    shapes = gather(torch.stack(sizes), group_name, world_size)
    if tensor.device.type == "cpu":
        rows = sorted({tuple(shape) for shape in shapes.tolist()})
        if len(rows) > 1:
            raise ValueError(f"every rank must pass the same number of rows and width, got {rows}")
    else:
        torch._assert_async((shapes == shapes[0]).all(), "ranks passed different numbers of rows or widths")


def _resolve(group_name: str) -> dist.ProcessGroup:
    return dist.distributed_c10d._resolve_process_group(group_name)  # type: ignore[attr-defined, arg-type]

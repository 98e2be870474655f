"""The group-masked NT-Xent loss by its definition: the whole similarity matrix, in float64.

The oracle of the tests. Memory grows with the square of the number of rows.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor


def patch_nt_xent(
    q: Tensor, k: Tensor, groups: Tensor, temperature: Tensor, process_group: dist.ProcessGroup | None = None
) -> Tensor:
    """Loss of `interface.patch_nt_xent` in float64; q, k (N, D), groups (N,) integers, temperature 0-d."""
    q, k = _all_ranks(q.double(), process_group), _all_ranks(k.double(), process_group)
    groups = _all_ranks(groups, process_group)
    present = groups >= 0
    q, k, groups = q[present], k[present], groups[present]
    n = q.shape[0]

    rows = torch.cat([q, k])
    z = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-8)
    tau = torch.where(temperature > 0, temperature, math.nan).double().to(z.device)
    logits = z @ z.T / tau
    group = torch.cat([groups, groups])
    negative = group[:, None] != group[None, :]
    row = torch.arange(2 * n, device=z.device)
    positive = logits[row, (row + n) % max(2 * n, 1)]

    candidates = torch.cat([positive[:, None], logits.masked_fill(~negative, -math.inf)], dim=1)
    loss = torch.logsumexp(candidates, dim=1) - positive
    mean: Tensor = loss.sum() / max(2 * n, 1)
    return mean


def _all_ranks(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Rows of all ranks in rank order, with a gradient to the local ones only."""
    if process_group is None:
        return tensor
    shapes: list[tuple[int, ...]] = [()] * process_group.size()
    dist.all_gather_object(shapes, tuple(tensor.shape), group=process_group)
    if len(set(shapes)) > 1:
        raise ValueError(f"every rank must pass the same number of rows and width, got {sorted(set(shapes))}")
    parts = [torch.empty_like(tensor) for _ in shapes]
    dist.all_gather(parts, tensor.detach().contiguous(), group=process_group)
    parts[process_group.rank()] = tensor
    return torch.cat(parts)

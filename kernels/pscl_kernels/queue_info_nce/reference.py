"""InfoNCE against a queue by its definition: all similarities and all labels, in float64.

The oracle of the tests.
"""

import math

import torch
from torch import Tensor

from pscl_kernels.queue_info_nce.labels import Labels
from pscl_kernels.ranks import total


def queue_info_nce(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    labels: Labels,
    row_weights: Tensor | None,
    normalise_targets: bool,
    temperature: Tensor,
    group_name: str,
) -> Tensor:
    """Loss of `interface.queue_info_nce` in float64."""
    n, entries = q.shape[0], queue.shape[0]
    groups = torch.zeros(n, dtype=torch.int64, device=q.device) if labels.groups is None else labels.groups
    queue_groups = groups.new_zeros(entries) if labels.queue_groups is None else labels.queue_groups
    present, filled = groups >= 0, queue_groups >= 0
    groups, queue_groups = groups[present], queue_groups[filled]

    z, positive_key = _unit(q[present].double()), _unit(k[present].double())
    tau = torch.where(temperature > 0, temperature, math.nan).double().to(z.device)
    positive = (z * positive_key).sum(1) / tau
    logits = z @ queue[filled].double().T / tau

    target = torch.zeros_like(logits)
    if labels.same_weight is not None and labels.subgroups is not None and labels.queue_subgroups is not None:
        subgroups, queue_subgroups = labels.subgroups[present], labels.queue_subgroups[filled]
        same = (subgroups[:, None] == queue_subgroups[None, :]) & (subgroups >= 0)[:, None]
        target = target + same * labels.same_weight[filled].double()
    if labels.any_weight is not None:
        target = target + labels.any_weight[filled].double()
    target = target * (groups[:, None] == queue_groups[None, :])
    mass = 1 + target.sum(1)

    lse = torch.logsumexp(torch.cat([positive[:, None], logits], dim=1), dim=1)
    loss = mass * lse - positive - (target * logits).sum(1)
    if normalise_targets:
        loss = loss / mass
    if row_weights is not None:
        loss = loss * row_weights[present].double()
    mean: Tensor = loss.sum() / total(present.sum(), group_name).clamp_min(1)
    return mean


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-8)
    return unit

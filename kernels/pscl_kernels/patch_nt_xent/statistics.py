"""What the loss acts on, for logs: how similar positives and hardest negatives are."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from pscl_kernels.patch_nt_xent.interface import check_rows, pair_groups
from pscl_kernels.patch_nt_xent.rows import no_negatives, similarities, sorted_rows, tiles, workspace
from pscl_kernels.ranks import check_same_shape, gather, name_and_size, rank_in, total


@torch.no_grad()
def patch_similarity_stats(
    q: Tensor, k: Tensor, groups: Tensor | None = None, process_group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Mean cosine of the positives, and mean over rows of the cosine of the most similar negative.

    Takes the rows of `patch_nt_xent`, in tiles of bounded memory. The means, two 0-d tensors that are the same on
    every rank, run over the rows that take part, and for the negatives over those that have one; a mean over no
    row is NaN.
    """
    check_rows(q, k, groups)
    group_name, world_size = name_and_size(process_group)
    with torch.autocast(q.device.type, enabled=False):
        check_same_shape(q, group_name, world_size)
        rank = rank_in(group_name)
        own = sorted_rows(q, k, pair_groups(q, groups, process_group))
        z, group = gather(own.z, group_name, world_size), gather(own.group, group_name, world_size)
        memory = workspace(own.z)
        hardest = torch.full_like(own.norm, -math.inf)
        for other in range(world_size):
            for tile in tiles(own.group, group[other], symmetric=other == rank):
                s = similarities(own.z, z[other], tile, memory)
                if tile.masked:
                    s.masked_fill_(no_negatives(tile, own.group, group[other]), -math.inf)
                hardest[tile.rows] = torch.maximum(hardest[tile.rows], s.amax(1))
                if other == rank and not tile.on_diagonal:
                    hardest[tile.columns] = torch.maximum(hardest[tile.columns], s.amax(0))
        positive = torch.where(own.group >= 0, (own.z * own.z[own.partner]).sum(1), 0.0)
        has_negative = hardest != -math.inf
        sums = torch.stack(
            [
                positive.sum(),
                (own.group >= 0).sum().to(positive),
                torch.where(has_negative, hardest, 0.0).sum(),
                has_negative.sum().to(positive),
            ]
        )
        sums = total(sums, group_name)
        return sums[0] / sums[1], sums[2] / sums[3]

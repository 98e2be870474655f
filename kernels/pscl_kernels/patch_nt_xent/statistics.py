"""Similarity of the positives and of the hardest negatives, for logs."""

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

    Arguments and errors are those of `patch_nt_xent`. Computed in tiles by torch operations, on any device; memory beyond
    the normalised rows is bounded by the size of a tile. Returns two 0-d tensors, equal on every rank: the mean over the
    rows that take part, and the mean over those of them that have a negative. A mean over no row is NaN.
    """
    check_rows(q, k, groups)
    group_name, world_size = name_and_size(process_group)
    with torch.autocast(q.device.type, enabled=False):
        check_same_shape(q, group_name, world_size)
        rank = rank_in(group_name)
        own = sorted_rows(q, k, pair_groups(q, groups, process_group))
        z, label = gather(own.z, group_name, world_size), gather(own.sorting.label, group_name, world_size)
        memory = workspace(z)
        hardest = torch.full_like(own.norm, -math.inf)
        for other in range(world_size):
            for tile in tiles(label, rank, other):
                s = similarities(z, tile, memory)
                if tile.masked:
                    s.masked_fill_(no_negatives(tile, label), -math.inf)
                for span, dim, _ in tile.sides(rank):
                    hardest[span] = torch.maximum(hardest[span], s.amax(dim))
        present = own.sorting.label < 0
        positive = torch.where(present, (own.z * own.z[own.sorting.partner]).sum(1), 0.0)
        has_negative = hardest != -math.inf
        sums = torch.stack(
            [
                positive.sum(),
                present.sum().to(positive),
                torch.where(has_negative, hardest, 0.0).sum(),
                has_negative.sum().to(positive),
            ]
        )
        sums = total(sums, group_name)
        return sums[0] / sums[1], sums[2] / sums[3]

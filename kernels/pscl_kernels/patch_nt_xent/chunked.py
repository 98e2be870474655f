"""The group-masked NT-Xent loss in tiles, for any device that torch runs on.

The rows are scaled so that a tile of exponentials is exp2(x_i . x_j), x = z sqrt(log2(e) / temperature). Because
|z_i . z_j| <= 1, exponents stay in range except for the smallest temperatures, and sums of exponentials are plain sums;
for smaller temperatures each row keeps a running maximum. The backward pass computes each tile again. With row weights
of one, row sums l_i and exponentials E_ij,

    dx_i = sum_j W_ij x_j - 2 x_p,     W_ij = E_ij (1 / l_i + 1 / l_j),

where j runs over the negatives and the positive p. W is symmetric: one tile serves its rows and its columns.
"""

import math

import torch
from torch import Tensor

from pscl_kernels.norms import NORM_FLOOR
from pscl_kernels.patch_nt_xent.operation import LOG2_E, Prepared, Saved, coefficient_of, is_plain, scale_of
from pscl_kernels.patch_nt_xent.rows import (
    Tile,
    no_negatives,
    shard_rows,
    similarities,
    sorted_rows,
    tiles,
    workspace,
)


def layout(q: Tensor) -> tuple[int, torch.dtype]:
    """See `operation.Backend`, as for the functions below."""
    return q.shape[1], torch.float64 if q.dtype == torch.float64 else torch.float32


def prepare(q: Tensor, k: Tensor, groups: Tensor, temperature: Tensor) -> Prepared:
    own = sorted_rows(q, k, groups)
    x = own.z.mul_(scale_of(temperature))
    return Prepared(x, (x * x[own.sorting.partner]).sum(1), own.norm, *own.sorting)


def local_sums(x: Tensor, label: Tensor, positive: Tensor, temperature: Tensor) -> Tensor:
    return _shard_sums(x.unsqueeze(0), label.unsqueeze(0), positive, 0, 0, is_plain(temperature) is True)


def log_sums(
    x: Tensor, label: Tensor, positive: Tensor, rank: int, local: Tensor | None, temperature: Tensor
) -> Tensor:
    plain = is_plain(temperature) is True  # running maxima are always safe
    if local is None:
        local = local_sums(x[rank], label[rank], positive, temperature)
    row_max = torch.zeros_like(positive) if plain else positive.clone()
    sums = torch.exp2(positive - row_max)
    for other in range(x.shape[0]):
        by_shard = local if other == rank else _shard_sums(x, label, positive, rank, other, plain)
        for part, part_max in by_shard.unbind(1):
            if plain:
                sums += part
            else:
                before, row_max = row_max, torch.maximum(row_max, part_max)
                sums = sums * torch.exp2(before - row_max) + part * torch.exp2(part_max - row_max)
    return sums.log2_().add_(row_max)


def mean(lse: Tensor, positive: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    present = label < 0
    losses = torch.where(present, (lse - positive) / LOG2_E, 0.0)
    count = present.sum().clamp_min(1)
    return losses.sum() / count, count


def row_gradients(
    grad: Tensor, q: Tensor, k: Tensor, saved: Saved, rank: int, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    own, lse, present = saved.x[rank], saved.lse[rank], saved.label[rank] < 0
    other = own[saved.partner]
    positive = (own * other).sum(1)
    pull = torch.exp2(positive - lse) + torch.exp2(positive - lse[saved.partner]) - 2.0
    dx = other.mul_(torch.where(present, pull, 0.0).unsqueeze(1))
    _add_weighted_negatives(dx, saved, rank, plain=is_plain(temperature) is True)

    z = torch.cat([q, k]).index_select(0, saved.order).to(dx) / saved.norm.unsqueeze(1)
    z.masked_fill_(~present.unsqueeze(1), 0.0)
    radial = (z * dx).sum(1)
    coefficient = coefficient_of(grad, saved, temperature)
    # Below the floor the divisor is constant, so the gradient keeps its radial part.
    tangential = torch.where(saved.norm > NORM_FLOOR, radial, 0.0)
    rows = dx.sub_(z.mul_(tangential.unsqueeze(1))).mul_((coefficient / saved.norm).unsqueeze(1))
    rows.masked_fill_(~present.unsqueeze(1), 0.0)
    grad_q, grad_k = torch.empty_like(rows).index_copy_(0, saved.order, rows).to(q.dtype).chunk(2)
    return grad_q.contiguous(), grad_k.clone(), radial


def temperature_gradient(grad: Tensor, radial: Tensor, saved: Saved, temperature: Tensor) -> Tensor:
    coefficient = coefficient_of(grad, saved, temperature)
    return (radial.sum() * coefficient * (-0.5 / temperature.double())).to(temperature)


def _shard_sums(x: Tensor, label: Tensor, positive: Tensor, rank: int, other: int, plain: bool) -> Tensor:
    """(2, shards, 2N): each own row's sum of exponentials over the negatives in each shard of rank `other`.

    The sums are relative to 2^maximum; the maxima are the second entry, and all 0 with `plain`.
    """
    rows = positive.numel()
    shards = -(-rows // shard_rows(rows))
    sums = positive.new_zeros((2, shards, rows))
    if not plain:
        sums[1] = positive
    memory = workspace(x)
    for tile in tiles(label, rank, other):
        exponents = similarities(x, tile, memory)
        excluded = no_negatives(tile, label) if tile.masked else None
        if plain:
            e = exponents.exp2_()
            if excluded is not None:
                e.masked_fill_(excluded, 0.0)
            for span, dim, columns in tile.sides(rank):
                sums[0, columns.shard, span] += e.sum(dim)
        else:
            if excluded is not None:
                exponents.masked_fill_(excluded, -math.inf)
            for span, dim, columns in tile.sides(rank):
                part, row_max = sums[:, columns.shard, span]
                after = torch.maximum(row_max, exponents.amax(dim))
                new = torch.exp2(exponents - after.unsqueeze(dim)).sum(dim)
                part.mul_(torch.exp2(row_max - after)).add_(new)
                row_max.copy_(after)
    return sums


def _add_weighted_negatives(dx: Tensor, saved: Saved, rank: int, *, plain: bool) -> None:
    """Add sum_j W_ij x_j over the negatives j of all ranks to the rows of `dx`, (2N, D)."""
    x, lse, label = saved.x, saved.lse, saved.label
    memory, more = workspace(x), workspace(x)
    inverse = torch.exp2(-lse)

    def weights(tile: Tile) -> Tensor:
        exponents = similarities(x, tile, memory)
        part = more[: exponents.numel()].view_as(exponents)
        if plain:
            row, column = tile.rows.of(inverse).unsqueeze(1), tile.columns.of(inverse).unsqueeze(0)
            w = exponents.exp2_().mul_(torch.add(row, column, out=part))
        else:
            torch.sub(exponents, tile.rows.of(lse).unsqueeze(1), out=part).exp2_()
            w = exponents.sub_(tile.columns.of(lse).unsqueeze(0)).exp2_().add_(part)
        if tile.masked:
            w.masked_fill_(no_negatives(tile, label), 0.0)
        return w

    for other in range(x.shape[0]):
        for tile in tiles(label, rank, other):
            w = weights(tile)
            for span, dim, columns in tile.sides(rank):
                dx[span].addmm_(w if dim == 1 else w.T, columns.of(x))

"""The group-masked NT-Xent loss in tiles, for any device that torch runs on.

The rows are scaled so that a tile of exponentials is exp2(x_i . x_j), x = z sqrt(log2(e) / temperature). Because
|z_i . z_j| <= 1, exponents stay in range for all but the smallest temperatures, and sums of exponentials are plain
sums; below, each row keeps a running maximum. The backward pass computes each tile again: with row weights of one,
row sums l_i and E_ij the exponentials,

    dx_i = sum_j W_ij x_j - 2 x_p,     W_ij = E_ij (1 / l_i + 1 / l_j),

where j runs over the negatives and the positive p. W is symmetric: one tile serves its rows and its columns.
"""

import math

import torch
from torch import Tensor

from pscl_kernels.patch_nt_xent.operation import Prepared, Saved, scale_of
from pscl_kernels.patch_nt_xent.rows import (
    NORM_FLOOR,
    Tile,
    no_negatives,
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
    return Prepared(x, (x * x[own.partner]).sum(1), own.norm, own.group, own.order, own.partner)


def log_sums(x: Tensor, group: Tensor, positive: Tensor, rank: int, *, plain: bool) -> Tensor:
    memory = workspace(x[rank])
    top = torch.zeros_like(positive) if plain else positive.clone()
    sums = torch.exp2(positive - top)

    def add(exponents: Tensor, span: slice, dim: int) -> None:
        """Add the exponentials of one tile along `dim` to the sums of the rows in `span`, by a running maximum."""
        before, after = top[span], torch.maximum(top[span], exponents.amax(dim))
        new = torch.exp2(exponents - after.unsqueeze(dim)).sum(dim)
        sums[span] = sums[span] * torch.exp2(before - after) + new
        top[span] = after

    for other in range(x.shape[0]):
        for tile in tiles(group[rank], group[other], symmetric=other == rank):
            exponents = similarities(x[rank], x[other], tile, memory)
            excluded = no_negatives(tile, group[rank], group[other]) if tile.masked else None
            both = other == rank and not tile.on_diagonal
            if plain:
                e = exponents.exp2_()
                if excluded is not None:
                    e.masked_fill_(excluded, 0.0)
                sums[tile.rows] += e.sum(1)
                if both:
                    sums[tile.columns] += e.sum(0)
            else:
                if excluded is not None:
                    exponents.masked_fill_(excluded, -math.inf)
                add(exponents, tile.rows, 1)
                if both:
                    add(exponents, tile.columns, 0)
    return sums.log2_().add_(top)


def row_gradients(
    coefficient: Tensor, q: Tensor, k: Tensor, saved: Saved, rank: int, *, plain: bool
) -> tuple[Tensor, Tensor, Tensor]:
    own, log_sum, present = saved.x[rank], saved.log_sum[rank], saved.group[rank] >= 0
    other = own[saved.partner]
    positive = (own * other).sum(1)
    pull = torch.exp2(positive - log_sum) + torch.exp2(positive - log_sum[saved.partner]) - 2.0
    dx = other.mul_(torch.where(present, pull, 0.0).unsqueeze(1))
    _add_weighted_negatives(dx, saved, rank, plain=plain)

    z = torch.cat([q, k]).index_select(0, saved.order).to(dx) / saved.norm.unsqueeze(1)
    z.masked_fill_(~present.unsqueeze(1), 0.0)
    radial = (z * dx).sum(1)
    # Below the floor the divisor is constant, and no part of the gradient is radial.
    tangential = torch.where(saved.norm > NORM_FLOOR, radial, 0.0)
    rows = dx.sub_(z.mul_(tangential.unsqueeze(1))).mul_((coefficient / saved.norm).unsqueeze(1))
    rows.masked_fill_(~present.unsqueeze(1), 0.0)
    dq, dk = torch.empty_like(rows).index_copy_(0, saved.order, rows).to(q.dtype).chunk(2)
    return dq.contiguous(), dk.clone(), radial.sum()


def _add_weighted_negatives(dx: Tensor, saved: Saved, rank: int, *, plain: bool) -> None:
    """Add sum_j W_ij x_j over the negatives j of all ranks to the rows of `dx`, (2N, D)."""
    x, log_sum, group = saved.x, saved.log_sum, saved.group
    memory, more = workspace(dx), workspace(dx)
    inverse = torch.exp2(-log_sum)

    def weights(tile: Tile, other: int) -> Tensor:
        exponents = similarities(x[rank], x[other], tile, memory)
        part = more[: exponents.numel()].view_as(exponents)
        if plain:
            row, column = inverse[rank][tile.rows], inverse[other][tile.columns]
            w = exponents.exp2_().mul_(torch.add(row.unsqueeze(1), column.unsqueeze(0), out=part))
        else:
            torch.sub(exponents, log_sum[rank][tile.rows].unsqueeze(1), out=part).exp2_()
            w = exponents.sub_(log_sum[other][tile.columns].unsqueeze(0)).exp2_().add_(part)
        if tile.masked:
            w.masked_fill_(no_negatives(tile, group[rank], group[other]), 0.0)
        return w

    for other in range(x.shape[0]):
        for tile in tiles(group[rank], group[other], symmetric=other == rank):
            w = weights(tile, other)
            dx[tile.rows].addmm_(w, x[other][tile.columns])
            if other == rank and not tile.on_diagonal:
                dx[tile.columns].addmm_(w.T, x[rank][tile.rows])

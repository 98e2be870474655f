"""The group-masked NT-Xent loss in tiles, for any device that torch runs on.

The rows are scaled so that a tile of exponentials is exp2(x_i . x_j), x = z sqrt(log2(e) / temperature). Because
|z_i . z_j| <= 1, exponents stay in range for all but the smallest temperatures, and sums of exponentials are plain
sums; below `PLAIN_TEMPERATURE` each row keeps a running maximum. The backward pass computes each tile again: with
row weight g_i, row sum l_i and E_ij the exponential,

    dz_i = (sum_j W_ij z_j - (g_i + g_p) z_p) / temperature,     W_ij = E_ij (g_i / l_i + g_j / l_j),

where j runs over the negatives and the positive p. W is symmetric: one tile serves its rows and its columns.
"""

import math

import torch
from torch import Tensor

from pscl_kernels.patch_nt_xent.rows import (
    NORM_FLOOR,
    Tile,
    no_negatives,
    similarities,
    sorted_rows,
    tiles,
    workspace,
)
from pscl_kernels.ranks import check_same_shape, gather, rank_in, total

PLAIN_TEMPERATURE = 0.0136
"""Lowest temperature at which 2^21 exponentials sum without overflow in float32."""

LOG2_E = math.log2(math.e)


def patch_nt_xent(
    q: Tensor, k: Tensor, groups: Tensor, temperature: Tensor, group_name: str, world_size: int
) -> Tensor:
    """Loss of `interface.patch_nt_xent`; q, k (N, D), groups (N,) int64, temperature 0-d on any device."""
    loss: Tensor = _forward(q, k, groups, temperature, group_name, world_size)[0]
    return loss


@torch.library.custom_op("pscl_kernels::patch_nt_xent_chunked", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, groups: Tensor, temperature: Tensor, group_name: str, world_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, x, log_sum, group, norm, order, partner).

    Of all ranks: the scaled sorted rows x (world, 2N, D), the base-2 logarithms of their sums (world, 2N) and their
    groups (world, 2N). Of this rank, as in `SortedRows`: norm, order and partner, each (2N,).
    """
    with torch.autocast(q.device.type, enabled=False):
        check_same_shape(q, group_name, world_size)
        own = sorted_rows(q, k, groups)
        x = own.z.mul_(_scale(temperature))
        xs, row_groups = gather(x, group_name, world_size), gather(own.group, group_name, world_size)
        positive = (x * x[own.partner]).sum(1)
        log_sum = _log_sums(xs, row_groups, positive, rank_in(group_name), plain=_is_plain(temperature))
        log_sums, positives = gather(torch.stack([log_sum, positive]), group_name, world_size).unbind(1)
        # Every rank adds the same numbers in the same order, so that all get the same loss to the last bit.
        present = row_groups >= 0
        losses = torch.where(present, (log_sums - positives) / LOG2_E, 0.0)
        loss = losses.sum() / present.sum().clamp_min(1)
        return loss, xs, log_sums.contiguous(), row_groups, own.norm, own.order, own.partner


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, groups: Tensor, temperature: Tensor, group_name: str, world_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    n, d = q.shape
    of_all = q.new_empty((world_size, 2 * n), dtype=dtype)
    own = groups.new_empty(2 * n)
    return (
        q.new_empty((), dtype=dtype),
        q.new_empty((world_size, 2 * n, d), dtype=dtype),
        of_all,
        groups.new_empty((world_size, 2 * n)),
        q.new_empty(2 * n, dtype=dtype),
        own,
        torch.empty_like(own),
    )


@torch.library.custom_op("pscl_kernels::patch_nt_xent_chunked_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    log_sum: Tensor,
    group: Tensor,
    norm: Tensor,
    order: Tensor,
    partner: Tensor,
    temperature: Tensor,
    dtype: torch.dtype,
    with_temperature: bool,
    group_name: str,
    world_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, each (N, D), and of the temperature, 0-d, for the upstream gradient `grad`, 0-d."""
    with torch.autocast(x.device.type, enabled=False):
        rank = rank_in(group_name)
        present = group >= 0
        weight = present.to(x.dtype) / present.sum().clamp_min(1)
        own, own_weight, own_log_sum = x[rank], weight[rank], log_sum[rank]
        other = own[partner]
        positive = (own * other).sum(1)
        pull = torch.exp2(positive - own_log_sum) + torch.exp2(positive - own_log_sum[partner]) - 2.0
        dx = other * (own_weight * torch.where(present[rank], pull, 0.0)).unsqueeze(1)
        _add_weighted_negatives(dx, x, log_sum, group, weight, rank, plain=_is_plain(temperature))

        # x = scale z, and the loss depends on the temperature and z through x alone.
        tau, scale = temperature.double(), _scale(temperature)
        z, dz = own / scale, dx / (tau * scale)
        radial = (z * dz).sum(1)
        if with_temperature:
            grad_temperature = (total(radial.sum(), group_name) * (-0.5 / tau) * grad).to(temperature)
        else:
            grad_temperature = torch.zeros_like(temperature)
        # Below the floor the divisor is constant, and no part of the gradient is radial.
        radial = torch.where(norm > NORM_FLOOR, radial, 0.0)
        rows = (dz - z * radial.unsqueeze(1)) / norm.unsqueeze(1) * grad
        rows = rows.masked_fill_(~present[rank].unsqueeze(1), 0.0)
        dq, dk = torch.empty_like(rows).index_copy_(0, order, rows).to(dtype).chunk(2)
        return dq.contiguous(), dk.clone(), grad_temperature


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    log_sum: Tensor,
    group: Tensor,
    norm: Tensor,
    order: Tensor,
    partner: Tensor,
    temperature: Tensor,
    dtype: torch.dtype,
    with_temperature: bool,
    group_name: str,
    world_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[1] // 2, x.shape[2])
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype), torch.empty_like(temperature)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, _, _, temperature, ctx.group_name, ctx.world_size = inputs
    ctx.dtype = q.dtype
    ctx.save_for_backward(*output[1:], temperature)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, *_):  # type: ignore[no-untyped-def]
    if grad is None:
        return None, None, None, None, None, None
    with_temperature = ctx.needs_input_grad[3]
    dq, dk, dtau = _backward(
        grad, *ctx.saved_tensors, ctx.dtype, with_temperature, ctx.group_name, ctx.world_size
    )
    return dq, dk, None, dtau if with_temperature else None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _scale(temperature: Tensor) -> Tensor:
    """Factor from a normalised row to one whose products are base-2 exponents; a CPU scalar stays on the host."""
    return torch.sqrt(LOG2_E / temperature.double())


def _is_plain(temperature: Tensor) -> bool:
    """Whether plain sums are known to be safe; the value of a tensor on an accelerator is not read."""
    return temperature.device.type == "cpu" and float(temperature) >= PLAIN_TEMPERATURE


def _log_sums(x: Tensor, group: Tensor, positive: Tensor, rank: int, *, plain: bool) -> Tensor:
    """(2N,) base-2 logarithm of each own row's sum of exponentials over its positive and all its negatives."""
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


def _add_weighted_negatives(
    dx: Tensor, x: Tensor, log_sum: Tensor, group: Tensor, weight: Tensor, rank: int, *, plain: bool
) -> None:
    """Add sum_j W_ij x_j over the negatives j of all ranks to the rows of `dx`, (2N, D)."""
    memory, more = workspace(dx), workspace(dx)
    scaled = weight * torch.exp2(-log_sum) if plain else weight

    def weights(tile: Tile, other: int) -> Tensor:
        exponents = similarities(x[rank], x[other], tile, memory)
        row, column = scaled[rank][tile.rows].unsqueeze(1), scaled[other][tile.columns].unsqueeze(0)
        part = more[: exponents.numel()].view_as(exponents)
        if plain:
            w = exponents.exp2_().mul_(torch.add(row, column, out=part))
        else:
            torch.sub(exponents, log_sum[rank][tile.rows].unsqueeze(1), out=part).exp2_().mul_(row)
            w = exponents.sub_(log_sum[other][tile.columns].unsqueeze(0)).exp2_().mul_(column).add_(part)
        if tile.masked:
            w.masked_fill_(no_negatives(tile, group[rank], group[other]), 0.0)
        return w

    for other in range(x.shape[0]):
        for tile in tiles(group[rank], group[other], symmetric=other == rank):
            w = weights(tile, other)
            dx[tile.rows].addmm_(w, x[other][tile.columns])
            if other == rank and not tile.on_diagonal:
                dx[tile.columns].addmm_(w.T, x[rank][tile.rows])

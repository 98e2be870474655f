"""InfoNCE against a queue in tiles, for any device that torch runs on.

Rows are scaled so that a tile of base-2 exponents is one matrix product. If the greatest norm of an entry shows that
sums cannot overflow, they are plain; otherwise each row keeps a running maximum. The backward pass computes each tile
again.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pscl_kernels.norms import NORM_FLOOR, row_norms
from pscl_kernels.patch_nt_xent.operation import LOG2_E
from pscl_kernels.queue_info_nce.labels import Labels, sorted_runs
from pscl_kernels.queue_info_nce.operation import Columns, Rows, plain_limit, scale_of

TILE_CPU = 1024
"""Side of a tile on a CPU: 4 MiB of float32, which fits into the last-level cache."""

TILE_ACCELERATOR = 4096
"""Side of a tile on other devices: large enough to hide the launches."""


def layout(q: Tensor) -> tuple[int, torch.dtype]:
    """See `operation.Backend`, as for the functions below."""
    return q.shape[1], torch.float64 if q.dtype == torch.float64 else torch.float32


def columns(q: Tensor, queue: Tensor, labels: Labels) -> tuple[Columns, Tensor]:
    _, dtype = layout(q)
    runs = sorted_runs(labels, q.shape[0], queue.shape[0], q.device, dtype)
    # A result of an operator must not be its argument.
    keys = queue.to(dtype, copy=True) if runs.order is None else queue.index_select(0, runs.order).to(dtype)
    keys = keys.contiguous()
    if runs.empty is not None:
        keys.masked_fill_(runs.empty.unsqueeze(1), 0.0)
    if queue.shape[0]:
        # In float64, because the squares of long keys overflow float32.
        bound = torch.linalg.vector_norm(keys, dim=1, dtype=torch.float64).amax().to(dtype)
    else:
        bound = keys.new_zeros(())
    sums = keys.new_zeros((len(runs.weight), *keys.shape))
    masses = torch.zeros_like(runs.weight)
    for kind, (weight, head) in enumerate(zip(runs.weight, runs.head, strict=True)):
        sums[kind].index_add_(0, head, keys * weight.unsqueeze(1))
        masses[kind].index_add_(0, head, weight)
    return Columns(keys, runs.filled, bound, sums, runs.place), masses


def forward(
    q: Tensor, k: Tensor, present: Tensor, temperature: Tensor, columns: Columns, masses: Tensor
) -> Rows:
    scale = scale_of(temperature)
    keys, empty = _visible(columns)
    lse, positive, target = (keys.new_empty(q.shape[0]) for _ in range(3))
    memory = _workspace(q, keys)
    # Reading the bound would make the host wait for an accelerator; the running maximum is kept there instead.
    plain = keys.device.type == "cpu" and float(scale * columns.bound.clamp_min(1.0)) <= plain_limit(
        len(keys)
    )
    for span in _spans(q.shape[0], q.device):
        z, _ = _unit(q[span], present[span], keys.dtype)
        x = z.mul_(scale)
        own = (x * _unit(k[span], present[span], keys.dtype)[0]).sum(1)
        row_max = torch.zeros_like(own) if plain else own.clone()
        sums = torch.exp2(own - row_max)
        for tile in _spans(keys.shape[0], keys.device):
            exponents = _product(x, keys[tile], memory)
            if empty is not None:
                exponents.masked_fill_(empty[tile], -math.inf)
            if not plain:
                before, row_max = row_max, torch.maximum(row_max, exponents.amax(1))
                sums.mul_(torch.exp2(before - row_max))
                exponents.sub_(row_max.unsqueeze(1))
            sums += exponents.exp2_().sum(1)
        lse[span] = sums.log2_().add_(row_max)
        positive[span] = own
        target[span] = (x * _targets(columns, span)).sum(1)
    if masses.numel():
        found = masses.gather(1, columns.place.clamp_min(0)).masked_fill_(columns.place < 0, 0.0)
        mass = found.sum(dim=0).add_(1.0)
    else:
        mass = torch.ones_like(positive)
    return Rows(lse.unsqueeze(0), positive, target, mass)


def losses(
    rows: Rows,
    bound: Tensor,
    present: Tensor,
    row_weights: Tensor | None,
    count: Tensor,
    normalise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # If an entry is infinite, exponents may be -inf, which exponentials would hide.
    lse = rows.lse[0] + 0.0 * bound
    coefficient = present / count.clamp_min(1).to(lse)
    if normalise:
        coefficient = coefficient / rows.mass
    if row_weights is not None:
        coefficient = coefficient * torch.where(present, row_weights, 0.0)
    each = (rows.mass * lse - rows.positive - rows.target) / LOG2_E
    return (coefficient * torch.where(present, each, 0.0)).sum(), coefficient, lse


def backward(
    q: Tensor,
    k: Tensor,
    present: Tensor,
    temperature: Tensor,
    columns: Columns,
    lse: Tensor,
    mass: Tensor,
    coefficient: Tensor,
    with_k: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scale = scale_of(temperature)
    keys, empty = _visible(columns)
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_k = torch.empty_like(k, memory_format=torch.contiguous_format) if with_k else k.new_empty(0)
    radial = torch.zeros_like(columns.bound)
    memory = _workspace(q, keys)
    for span in _spans(q.shape[0], q.device):
        here, y = present[span], mass[span].unsqueeze(1)
        z, norm = _unit(q[span], here, keys.dtype)
        other, other_norm = _unit(k[span], here, keys.dtype)
        x = z * scale
        pull = torch.exp2((x * other).sum(1) - lse[span]).unsqueeze(1) * y - 1.0
        g = torch.zeros_like(z)
        for tile in _spans(keys.shape[0], keys.device):
            p = _product(x, keys[tile], memory).sub_(lse[span].unsqueeze(1)).exp2_()
            if empty is not None:
                p.masked_fill_(empty[tile], 0.0)
            g.addmm_(p, keys[tile])
        g.mul_(y).addcmul_(pull, other).sub_(_targets(columns, span))
        along = (z * g).sum(1, keepdim=True)
        each = coefficient[span].unsqueeze(1)
        radial += (each * along).masked_fill_(~here.unsqueeze(1), 0.0).sum()
        if with_k:
            along_k = pull * (z * other).sum(1, keepdim=True)
            grad_k[span] = _through_norm(z * pull, other, other_norm, along_k, each, temperature, here)
        grad_q[span] = _through_norm(g, z, norm, along, each, temperature, here)
    return grad_q, grad_k, radial


def _through_norm(
    g: Tensor,
    z: Tensor,
    norm: Tensor,
    along: Tensor,
    coefficient: Tensor,
    temperature: Tensor,
    present: Tensor,
) -> Tensor:
    """Gradient of a row from that of its unit vector z, g with along = <z, g>; overwrites z."""
    # Below the floor the divisor is constant, so the gradient keeps its radial part.
    tangential = torch.where(norm > NORM_FLOOR, along, 0.0)
    gradient = (g - z.mul_(tangential)).mul_(coefficient / norm).div_(temperature.to(g.dtype))
    return gradient.masked_fill_(~present.unsqueeze(1), 0.0)


def _visible(columns: Columns) -> tuple[Tensor, Tensor | None]:
    """Keys to visit, and which of them are empty, (Q,) bool; None if no empty ones are among them."""
    if columns.keys.device.type == "cpu":
        return columns.keys[: int(columns.filled)], None
    place = torch.arange(columns.keys.shape[0], device=columns.keys.device)
    return columns.keys, place >= columns.filled


def _targets(columns: Columns, span: slice) -> Tensor:
    """(rows, D) weighted sum of the keys that are targets of each row."""
    rows = columns.place[:, span]
    result = columns.keys.new_zeros((rows.shape[1], columns.keys.shape[1]))
    if columns.keys.shape[0]:
        for sums, place in zip(columns.sums, rows, strict=True):
            found = sums.index_select(0, place.clamp_min(0))
            result += found.masked_fill_((place < 0).unsqueeze(1), 0.0)
    return result


def _unit(rows: Tensor, present: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows over their norms, zero where not present, and the norms, (rows, 1)."""
    x = rows.to(dtype).masked_fill(~present.unsqueeze(1), 0.0)
    norm = row_norms(x)
    return x.div_(norm), norm


def _spans(count: int, device: torch.device) -> Iterator[slice]:
    side = TILE_CPU if device.type == "cpu" else TILE_ACCELERATOR
    return (slice(start, min(start + side, count)) for start in range(0, count, side))


def _workspace(q: Tensor, keys: Tensor) -> Tensor:
    """Memory for the largest tile."""
    side = TILE_CPU if q.device.type == "cpu" else TILE_ACCELERATOR
    return keys.new_empty(min(side, q.shape[0]) * min(side, keys.shape[0]))


def _product(x: Tensor, keys: Tensor, memory: Tensor) -> Tensor:
    """(rows, keys) products, written into `memory`."""
    out = memory[: x.shape[0] * keys.shape[0]].view(x.shape[0], keys.shape[0])
    return torch.mm(x, keys.T, out=out)

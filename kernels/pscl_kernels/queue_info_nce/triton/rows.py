# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""Kernels that treat each row separately: normalisation and targets before the tiles, gradients after them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.norms import NORM_FLOOR
from pscl_kernels.patch_nt_xent.operation import LOG2_E
from pscl_kernels.patch_nt_xent.triton.tiling import layout, norms, on_device
from pscl_kernels.queue_info_nce.operation import Columns, Rows
from pscl_kernels.queue_info_nce.triton import tiling

FLOOR = tl.constexpr(NORM_FLOOR)
LOG2E = tl.constexpr(LOG2_E)


def prepared(
    q: Tensor, k: Tensor, present: Tensor, scale: Tensor, columns: Columns | None, masses: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (N, width) whose products with the keys are base-2 exponents; for each, exponents of positive and target, and Y.

    Without `columns`, there are no targets.
    """
    n, d = q.shape
    width, dtype = layout(q)
    x = torch.empty((n, width), dtype=dtype, device=q.device)
    positive, target, mass = (torch.empty(n, dtype=torch.float32, device=q.device) for _ in range(3))
    if n:
        _prepare[(triton.cdiv(n, tiling.ROWS),)](
            q.contiguous(),
            k.contiguous(),
            present,
            None if columns is None else columns.sums,
            masses,
            None if columns is None else columns.place,
            scale,
            x,
            positive,
            target,
            mass,
            n,
            d,
            0 if columns is None else columns.keys.shape[0],
            KINDS=0 if columns is None else columns.place.shape[0],
            WIDTH=width,
            ROWS=tiling.ROWS,
        )
    return x, positive, target, mass


def losses(
    rows: Rows,
    bound: Tensor,
    present: Tensor,
    row_weights: Tensor | None,
    count: Tensor,
    normalise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `operation.Backend`."""
    parts, n = rows.lse.shape
    lse, coefficient = torch.empty_like(rows.mass), torch.empty_like(rows.mass)
    blocks = triton.cdiv(n, tiling.LOSSES)
    partial = lse.new_empty(blocks)
    if n:
        _losses[(blocks,)](
            rows.lse,
            rows.positive,
            rows.target,
            rows.mass,
            row_weights,
            present,
            bound,
            count,
            lse,
            coefficient,
            partial,
            n,
            parts,
            NORMALISE=normalise,
            BLOCK=tiling.LOSSES,
        )
    return partial.sum(), coefficient, lse


def finish(
    total: Tensor,
    q: Tensor,
    k: Tensor,
    present: Tensor,
    positive: Tensor,
    temperature: Tensor,
    columns: Columns,
    lse: Tensor,
    mass: Tensor,
    coefficient: Tensor,
    with_k: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Results of `operation.Backend.backward` from the shares `total` (parts, N, width) of sum_j p_ij queue_j."""
    n, d = q.shape
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_k = torch.empty_like(k, memory_format=torch.contiguous_format) if with_k else k.new_empty(0)
    radial = torch.empty_like(lse)
    _finish[(triton.cdiv(n, tiling.ROWS),)](
        total,
        q.contiguous(),
        k.contiguous(),
        present,
        columns.sums,
        columns.place,
        positive,
        lse,
        mass,
        coefficient,
        on_device(1.0 / temperature.double(), q.device),
        grad_q,
        grad_k,
        radial,
        n,
        d,
        columns.keys.shape[0],
        total.shape[0],
        KINDS=columns.place.shape[0],
        WITH_K=with_k,
        WIDTH=total.shape[2],
        ROWS=tiling.ROWS,
    )
    return grad_q, grad_k, radial.sum()


@triton.jit
def _unit(pointer, place, read):
    """Rows over their norms, and the norms."""
    x = tl.load(pointer + place, mask=read, other=0.0).to(tl.float32)  # [ROWS, WIDTH]
    norm = norms(x)
    return x / norm[:, None], norm


@triton.jit
def _target_sums(
    sums,
    place,
    row,
    present,
    entries,
    KINDS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    rows,
):
    """(ROWS, WIDTH) weighted sum of the keys that are targets of each row."""
    column = tl.arange(0, WIDTH)
    result = tl.zeros((ROWS, WIDTH), tl.float32)
    for kind in tl.static_range(KINDS):
        at = tl.load(place + kind * rows + row, mask=present, other=-1)
        source = (kind * entries + at)[:, None] * WIDTH + column[None, :]
        result += tl.load(sums + source, mask=(at >= 0)[:, None], other=0.0)
    return result


@triton.jit
def _prepare(
    q,
    k,
    valid,
    sums,
    masses,
    place,
    scale,
    x,
    positive,
    target,
    mass,
    rows,
    d,
    entries,
    KINDS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """x, positive, target and mass of one block of rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    here = tl.load(valid + row, mask=inside, other=0) != 0
    column = tl.arange(0, WIDTH)
    at = row[:, None] * d + column[None, :]
    read = here[:, None] & (column < d)[None, :]
    z, _ = _unit(q, at, read)
    other, _ = _unit(k, at, read)
    z *= tl.load(scale)
    tl.store(x + row[:, None] * WIDTH + column[None, :], z.to(x.dtype.element_ty), mask=inside[:, None])
    tl.store(positive + row, tl.sum(z * other, 1), mask=inside)
    targets = _target_sums(sums, place, row, here, entries, KINDS, WIDTH, ROWS, rows)
    tl.store(target + row, tl.sum(z * targets, 1), mask=inside)
    y = tl.zeros((ROWS,), tl.float32)
    for kind in tl.static_range(KINDS):
        at = tl.load(place + kind * rows + row, mask=here, other=-1)
        y += tl.load(masses + kind * entries + at, mask=at >= 0, other=0.0)
    tl.store(mass + row, 1.0 + y, mask=inside)


@triton.jit(do_not_specialize=["parts"])  # one code for any number of parts
def _losses(
    out,
    positive,
    target,
    mass,
    weight,
    valid,
    known,
    count,
    lse,
    coefficient,
    loss,
    rows,
    parts,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Results of `operation.Backend.losses` for one block of rows, and the sum of the block; `known` is the bound."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    here = tl.load(valid + row, mask=inside, other=0) != 0
    row_max = tl.load(out + row, mask=inside, other=0.0)  # [BLOCK]
    for part in range(1, parts):
        row_max = tl.maximum(row_max, tl.load(out + part * rows + row, mask=inside, other=0.0))
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.math.exp2(tl.load(out + part * rows + row, mask=inside, other=0.0) - row_max)
    # If an entry is infinite, exponents may be -inf, which exponentials would hide.
    level = tl.math.log2(total) + row_max + 0.0 * tl.load(known)
    y = tl.load(mass + row, mask=inside, other=1.0)
    c = here.to(tl.float32) / tl.maximum(tl.load(count), 1).to(tl.float32)
    if NORMALISE:
        c /= y
    if weight is not None:
        c *= tl.load(weight + row, mask=here, other=0.0)
    each = y * level - tl.load(positive + row, mask=inside, other=0.0)
    each = (each - tl.load(target + row, mask=inside, other=0.0)) / LOG2E
    tl.store(lse + row, level, mask=inside)
    tl.store(coefficient + row, c, mask=inside)
    tl.store(loss + tl.program_id(0), tl.sum(tl.where(here, c * each, 0.0), 0))


@triton.jit
def _store_gradient(out, place, write, g, z, norm, along, factor):
    """Store the gradient of rows whose unit vectors z have gradient g * factor, where along = <z, g>."""
    # At the floor the divisor is constant, and no part of the gradient is radial.
    tangential = tl.where(norm > FLOOR, along, 0.0)
    gradient = (g - z * tangential[:, None]) * (factor / norm)[:, None]
    tl.store(out + place, gradient.to(out.dtype.element_ty), mask=write)


@triton.jit(do_not_specialize=["parts"])  # one code for any number of parts
def _finish(
    total,
    q,
    k,
    valid,
    sums,
    place,
    positive,
    lse,
    mass,
    coefficient,
    inverse,
    grad_q,
    grad_k,
    radial,
    rows,
    d,
    entries,
    parts,
    KINDS: tl.constexpr,
    WITH_K: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Gradients of one block of rows of q and k, and coefficient <z, G> of each."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    here = tl.load(valid + row, mask=inside, other=0) != 0
    column = tl.arange(0, WIDTH)
    g = tl.zeros((ROWS, WIDTH), tl.float32)
    for part in range(parts):
        g += tl.load(
            total + (part * rows + row)[:, None] * WIDTH + column[None, :], mask=here[:, None], other=0.0
        )
    y = tl.load(mass + row, mask=here, other=0.0)
    c = tl.load(coefficient + row, mask=here, other=0.0)
    exponent = tl.load(positive + row, mask=here, other=0.0) - tl.load(lse + row, mask=here, other=0.0)
    pull = y * tl.math.exp2(exponent) - 1.0
    at = row[:, None] * d + column[None, :]
    write = inside[:, None] & (column < d)[None, :]
    z, norm = _unit(q, at, write & here[:, None])
    other, other_norm = _unit(k, at, write & here[:, None])
    g = g * y[:, None] + pull[:, None] * other
    g -= _target_sums(sums, place, row, here, entries, KINDS, WIDTH, ROWS, rows)
    along = tl.sum(z * g, 1)
    tl.store(radial + row, c * along, mask=inside)
    factor = c * tl.load(inverse)
    _store_gradient(grad_q, at, write, g, z, norm, along, factor)
    if WITH_K:
        _store_gradient(grad_k, at, write, z, other, other_norm, tl.sum(z * other, 1), factor * pull)

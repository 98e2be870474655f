# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""Sums of the weighted keys of entries with equal labels: inside blocks of the sorted queue, then across blocks.

Doing this inside the tiles of similarities would cost every pair two comparisons, two selections and a multiply-add,
about as much as its exponential; these kernels cost O(Q D).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.queue_info_nce.triton import tiling


def run_sums(keys: Tensor, weight: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of runs of `keys` (Q, width): (T, Q, width), and of the weights: (T, Q).

    weight, head (T, Q) as in `labels.Runs`. Only the results at the head of a run are read.
    """
    kinds, entries = weight.shape
    width = keys.shape[1]
    sums = torch.empty((kinds, entries, width), dtype=torch.float32, device=keys.device)
    masses = torch.empty_like(weight)
    if kinds and entries:
        part = min(tiling.PART, width)
        grid = (triton.cdiv(entries, tiling.BLOCK), width // part, kinds)
        for kernel in (_run_pieces, _run_totals):
            kernel[grid](
                keys, weight, head, sums, masses, entries, WIDTH=width, PART=part, ENTRIES=tiling.BLOCK
            )
    return sums, masses


@triton.jit
def _run_pieces(
    keys,
    weight,
    head,
    sums,
    masses,
    entries,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """For each entry of one block, the weighted sum of the entries of its run in that block."""
    kind = tl.program_id(2).to(tl.int64) * entries
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < entries
    column = tl.program_id(1) * PART + tl.arange(0, PART)
    run = tl.load(head + kind + entry, mask=inside, other=-1)
    w = tl.load(weight + kind + entry, mask=inside, other=0.0)
    shares = tl.where(run[:, None] == run[None, :], w[None, :], 0.0)
    place = entry[:, None] * WIDTH + column[None, :]
    values = tl.load(keys + place, mask=inside[:, None], other=0.0).to(tl.float32)  # [ENTRIES, PART]
    piece = tl.dot(shares, values, input_precision="tf32x3")  # [ENTRIES, PART]
    tl.store(sums + kind * WIDTH + place, piece, mask=inside[:, None])
    if tl.program_id(1) == 0:
        tl.store(masses + kind + entry, tl.sum(shares, 1), mask=inside)


@triton.jit
def _run_totals(
    keys,
    weight,
    head,
    sums,
    masses,
    entries,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """If a run begins in this block and continues behind it, add the pieces of the later blocks to its head.

    It does not read what other programs write, which are the heads of their runs.
    """
    kind = tl.program_id(2).to(tl.int64) * entries
    sums += kind * WIDTH
    masses += kind
    head += kind
    first = tl.program_id(0).to(tl.int64) * ENTRIES
    column = tl.program_id(1) * PART + tl.arange(0, PART)
    run = tl.load(head + tl.minimum(first + ENTRIES, entries) - 1)
    entry = first + (1 + tl.arange(0, 16)) * ENTRIES
    continues = (run >= first) & (first + ENTRIES < entries)
    if continues:
        continues = tl.load(head + first + ENTRIES) == run
    if continues:
        total = tl.load(sums + run * WIDTH + column)
        mass = tl.load(masses + run)
        while continues:
            own = tl.load(head + entry, mask=entry < entries, other=-1) == run
            place = entry[:, None] * WIDTH + column[None, :]
            total += tl.sum(tl.load(sums + place, mask=own[:, None], other=0.0), 0)
            mass += tl.sum(tl.load(masses + entry, mask=own, other=0.0), 0)
            entry += 16 * ENTRIES
            continues = tl.sum(own.to(tl.int32), 0) == 16
        tl.store(sums + run * WIDTH + column, total)
        if tl.program_id(1) == 0:
            tl.store(masses + run, mass)

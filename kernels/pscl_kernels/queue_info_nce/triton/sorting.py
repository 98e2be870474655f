# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The sorted queue and its runs of equal labels, as `labels.sorted_runs` defines them, in few launches.

Entries are sorted by subgroup and then, stably, by group. Sorted entry j was entry first[second[j]] of the queue, where
`first` is the order by subgroup and `second` the one by group; None is an order that is not needed.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pscl_kernels.patch_nt_xent.triton.tiling import layout, norms
from pscl_kernels.queue_info_nce.labels import Labels
from pscl_kernels.queue_info_nce.operation import Columns
from pscl_kernels.queue_info_nce.triton import tiling
from pscl_kernels.queue_info_nce.triton.runs import run_sums

LEAST = tl.constexpr(-(2**63))


class Sorted(NamedTuple):
    """Labels of the entries in order; None: there are none of that kind."""

    group: Tensor | None  # (Q,) int64, ascending keys of the groups by `_key`, 0 for empty slots
    subgroup: Tensor | None  # (Q,) int64 ascending; that of sorted entry j is subgroup[second[j]]
    first: Tensor | None  # (Q,) int64
    second: Tensor | None  # (Q,) int64


def columns(q: Tensor, queue: Tensor, labels: Labels) -> tuple[Columns, Tensor]:
    """See `operation.Backend`."""
    entries, d = queue.shape
    width, dtype = layout(q)
    keys = torch.empty((entries, width), dtype=dtype, device=q.device)
    lengths = torch.empty(triton.cdiv(entries, tiling.ROWS), dtype=torch.float32, device=q.device)
    ordered = _sorted(labels)
    weight, head, place, filled = _runs(labels, ordered, q.shape[0], entries, q.device)
    if entries:
        _copy_keys[(len(lengths),)](
            queue.contiguous(),
            ordered.group,
            ordered.first,
            ordered.second,
            keys,
            lengths,
            entries,
            d,
            WIDTH=width,
            ROWS=tiling.ROWS,
        )
    bound = lengths.amax() if entries else lengths.new_zeros(())
    sums, masses = run_sums(keys, weight, head)
    return Columns(keys, filled, bound, sums, place), masses


def _sorted(labels: Labels) -> Sorted:
    group = subgroup = first = second = None
    if labels.queue_subgroups is not None:
        subgroup, first = torch.sort(labels.queue_subgroups, stable=True)
    if labels.queue_groups is not None:
        entries = len(labels.queue_groups)
        group = torch.empty_like(labels.queue_groups)
        if entries:
            blocks = triton.cdiv(entries, tiling.LABELS)
            _group_keys[(blocks,)](labels.queue_groups, first, group, entries, BLOCK=tiling.LABELS)
        group, second = torch.sort(group, stable=True)
    return Sorted(group, subgroup, first, second)


def _runs(
    labels: Labels, ordered: Sorted, rows: int, entries: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight, head, place and filled as in `labels.Runs`."""
    kinds = int(labels.same_weight is not None) + int(labels.any_weight is not None)
    weight = torch.empty((kinds, entries), dtype=torch.float32, device=device)
    head = torch.empty((kinds, entries), dtype=torch.int64, device=device)
    place = torch.empty((kinds, rows), dtype=torch.int64, device=device)
    if entries and labels.queue_groups is not None:
        filled = torch.empty((), dtype=torch.int64, device=device)
    else:
        filled = torch.full((), entries, dtype=torch.int64, device=device)
    if max(rows, entries) and (kinds or labels.queue_groups is not None):
        _label_runs[(triton.cdiv(max(rows, entries), tiling.LABELS),)](
            *ordered,
            labels.groups,
            labels.subgroups,
            labels.same_weight,
            labels.any_weight,
            weight,
            head,
            place,
            filled,
            rows,
            entries,
            entries.bit_length(),
            BLOCK=tiling.LABELS,
        )
    return weight, head, place, filled


@triton.jit
def _key(group):
    """Keys of groups, in their order: negative, and 0 for a negative group, which comes after all others."""
    return tl.where(group < 0, 0, group + LEAST)


@triton.jit
def _source(first, second, entry, read):
    """Where in the queue sorted entries were."""
    if second is not None:
        entry = tl.load(second + entry, mask=read, other=0)
    if first is not None:
        entry = tl.load(first + entry, mask=read, other=0)
    return entry


@triton.jit
def _group_keys(groups, first, group, entries, BLOCK: tl.constexpr):
    """Keys of the groups of one block of entries in the order by subgroup."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < entries
    own = tl.load(groups + _source(first, None, entry, inside), mask=inside, other=-1)
    tl.store(group + entry, _key(own), mask=inside)


@triton.jit
def _label(group, subgroup, second, entry, read):
    """Group key and subgroup of sorted entries, 0 for what is None."""
    own_group = tl.zeros_like(entry)
    own_subgroup = tl.zeros_like(entry)
    if group is not None:
        own_group = tl.load(group + entry, mask=read, other=0)
    if subgroup is not None:
        own_subgroup = tl.load(subgroup + _source(None, second, entry, read), mask=read, other=0)
    return own_group, own_subgroup


@triton.jit
def _find(group, subgroup, second, wanted_group, wanted_subgroup, entries, steps):
    """Place of the first of the sorted entries with each wanted label, -1 if there is none."""
    begin = tl.zeros_like(wanted_group)
    end = begin + entries
    for _ in range(steps):
        middle = (begin + end) // 2
        own_group, own_subgroup = _label(group, subgroup, second, middle, begin < end)
        below = (own_group < wanted_group) | ((own_group == wanted_group) & (own_subgroup < wanted_subgroup))
        below = below & (begin < end)
        begin, end = tl.where(below, middle + 1, begin), tl.where(below, end, middle)
    own_group, own_subgroup = _label(group, subgroup, second, begin, begin < entries)
    equal = (own_group == wanted_group) & (own_subgroup == wanted_subgroup) & (begin < entries)
    return tl.where(equal, begin, -1)


@triton.jit(do_not_specialize=["steps"])
def _label_runs(
    group,
    subgroup,
    first,
    second,
    row_group,
    row_subgroup,
    same,
    any_of_group,
    weight,
    head,
    place,
    filled,
    rows,
    entries,
    steps,
    BLOCK: tl.constexpr,
):
    """weight and head of one block of entries, and place of one block of rows, for each kind of weight; filled."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK] entry and row
    of_entry, of_row = number < entries, number < rows
    source = _source(first, second, number, of_entry)
    entry_group, entry_subgroup = _label(group, subgroup, second, number, of_entry)
    known = of_row
    own_group = tl.zeros_like(number)
    if group is not None:
        own_group = _key(tl.load(row_group + number, mask=of_row, other=-1))
        known = own_group < 0
        # The end of the filled part is where a key of 0 follows another one, or none.
        after, _ = _label(group, None, None, number + 1, number + 1 < entries)
        tl.store(filled + number * 0, number + 1, mask=of_entry & (entry_group < 0) & (after == 0))
        tl.store(filled + number * 0, number, mask=of_entry & (number == 0) & (entry_group == 0))
    if same is not None:
        own_subgroup = tl.load(row_subgroup + number, mask=of_row, other=-1)
        run = _find(group, subgroup, second, entry_group, entry_subgroup, entries, steps)
        own = _find(group, subgroup, second, own_group, own_subgroup, entries, steps)
        tl.store(weight + number, tl.load(same + source, mask=of_entry, other=0.0), mask=of_entry)
        tl.store(head + number, run, mask=of_entry)
        tl.store(place + number, tl.where(known & (own_subgroup >= 0), own, -1), mask=of_row)
        weight += entries
        head += entries
        place += rows
    if any_of_group is not None:
        zero = tl.zeros_like(number)
        run = _find(group, None, second, entry_group, zero, entries, steps)
        own = _find(group, None, second, own_group, zero, entries, steps)
        tl.store(weight + number, tl.load(any_of_group + source, mask=of_entry, other=0.0), mask=of_entry)
        tl.store(head + number, run, mask=of_entry)
        tl.store(place + number, tl.where(known, own, -1), mask=of_row)


@triton.jit
def _copy_keys(
    queue, group, first, second, keys, lengths, entries, d, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """Sorted entries of one block, zero if empty, and the greatest of their norms, infinite for NaN."""
    entry = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = entry < entries
    here = inside
    if group is not None:
        here = tl.load(group + entry, mask=inside, other=0) < 0
    column = tl.arange(0, WIDTH)
    place = _source(first, second, entry, inside)[:, None] * d + column[None, :]
    x = tl.load(queue + place, mask=here[:, None] & (column < d)[None, :], other=0.0)  # [ROWS, WIDTH]
    x = x.to(keys.dtype.element_ty)
    tl.store(keys + entry[:, None] * WIDTH + column[None, :], x, mask=inside[:, None])
    norm = norms(x.to(tl.float32))
    tl.store(lengths + tl.program_id(0), tl.max(tl.where(norm == norm, norm, float("inf")), 0))

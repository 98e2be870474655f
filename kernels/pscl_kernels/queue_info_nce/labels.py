"""Labels of queue entries, without a matrix of N x Q numbers.

A row's targets are linear in the keys: sum_j y_ij s_ij = z_i . t_i with t_i = sum_j y_ij queue_j, which depends only
on the row's group and subgroup. The entries are therefore sorted by (group, subgroup), and the weighted keys of each
run of equal labels are added up once. A row only needs the places of two sums: that of its group and subgroup, and
that of its group. Shapes do not depend on the number of groups, so the host never waits for the device. Sorting also
moves empty slots to the end, where they are not visited.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Labels(NamedTuple):
    """Arguments that determine the targets, see `interface.queue_info_nce`. Subgroups are None without same_weight."""

    groups: Tensor | None  # (N,) int64
    queue_groups: Tensor | None  # (Q,) int64
    subgroups: Tensor | None  # (N,) int64
    queue_subgroups: Tensor | None  # (Q,) int64
    same_weight: Tensor | None  # (Q,)
    any_weight: Tensor | None  # (Q,)


class Runs(NamedTuple):
    """Sorted entries and, for each of T kinds of weight, the runs of entries with equal labels."""

    order: Tensor | None  # (Q,) int64: sorted entry j was entry order[j] of the queue; None: as given
    filled: Tensor  # 0-d int64: number of entries that are not empty, which come first
    weight: Tensor  # (T, Q) weight of each sorted entry
    head: Tensor  # (T, Q) int64: place of the first entry of each entry's run
    place: Tensor  # (T, N) int64: head of the run of each row's targets, -1 if there is none


def sorted_runs(labels: Labels, rows: int, entries: int, device: torch.device, dtype: torch.dtype) -> Runs:
    """Sort the entries by label and find the places of the rows' targets; weights in `dtype`."""
    filled = torch.full((), entries, dtype=torch.int64, device=device)
    group, row_group = _ranks(labels.queue_groups, labels.groups, rows, entries, device)
    subgroup, row_subgroup = _ranks(labels.queue_subgroups, labels.subgroups, rows, entries, device)
    base = entries + 1
    key = group * base + subgroup
    order = None
    if labels.queue_groups is not None:
        empty = labels.queue_groups < 0
        filled = filled - empty.sum()
        # Greater than all others: empty slots are a separate run whose sums are never used.
        key = key.masked_fill(empty, base * base)
    if labels.queue_groups is not None or labels.queue_subgroups is not None:
        key, order = torch.sort(key, stable=True)

    weights, heads, places = [], [], []
    for weight, keys, wanted in (
        (labels.same_weight, key, torch.where(row_subgroup >= 0, row_group * base + row_subgroup, -1)),
        (labels.any_weight, key.div(base, rounding_mode="floor"), row_group),
    ):
        if weight is not None:
            weights.append(weight if order is None else weight.index_select(0, order))
            heads.append(torch.searchsorted(keys, keys))
            places.append(_find(keys, torch.where(row_group >= 0, wanted, -1)))
    if not weights:
        none = key.new_empty((0, entries))
        return Runs(order, filled, none.to(dtype), none, key.new_empty((0, rows)))
    return Runs(order, filled, torch.stack(weights).to(dtype), torch.stack(heads), torch.stack(places))


def _ranks(
    queue_ids: Tensor | None, row_ids: Tensor | None, rows: int, entries: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ranks in [0, entries) of the ids of entries (Q,) and rows (N,): equal for equal ids, in the order of the ids.

    A row has -1 if its id is negative or no entry has it. Without ids, all have rank 0.
    """
    if queue_ids is None or row_ids is None:
        return tuple(torch.zeros(n, dtype=torch.int64, device=device) for n in (entries, rows))  # type: ignore[return-value]
    ids = torch.sort(queue_ids).values
    return torch.searchsorted(ids, queue_ids), torch.where(row_ids >= 0, _find(ids, row_ids), -1)


def _find(keys: Tensor, wanted: Tensor) -> Tensor:
    """Place of the first of the ascending `keys` equal to each wanted one, -1 if there is none."""
    if keys.numel() == 0:
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(keys, wanted)
    return torch.where(keys[place.clamp_max(keys.numel() - 1)] == wanted, place, -1)

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
    empty: Tensor | None  # (Q,) bool: sorted entries that are empty, which come last; None: there are none
    filled: Tensor  # 0-d int64: number of entries that are not empty
    weight: Tensor  # (T, Q) weight of each sorted entry
    head: Tensor  # (T, Q) int64: place of the first entry of each entry's run
    place: Tensor  # (T, N) int64: head of the run of each row's targets, -1 if there is none


def sorted_runs(labels: Labels, rows: int, entries: int, device: torch.device, dtype: torch.dtype) -> Runs:
    """Sort the entries by label and find the places of the rows' targets; weights in `dtype`."""
    order = empty = None
    filled = torch.full((), entries, dtype=torch.int64, device=device)
    key, row_key, row_group = (
        torch.empty(n, dtype=torch.int64, device=device) for n in (entries, rows, rows)
    )
    # Greater than the rank of any subgroup. A row's rank of -1 for its subgroup then gives the key of no entry, and
    # one for its group a negative key.
    base = 1
    if labels.queue_groups is not None and labels.groups is not None:
        if labels.queue_subgroups is None or labels.subgroups is None:
            (key,), (row_group,) = _ranks(labels.queue_groups[None], labels.groups[None])
            row_key = row_group
        else:
            base = entries + 1
            (group, subgroup), (row_group, row_subgroup) = _ranks(
                torch.stack((labels.queue_groups, labels.queue_subgroups)),
                torch.stack((labels.groups, labels.subgroups)),
            )
            key = torch.add(subgroup, group, alpha=base)
            row_key = torch.add(row_subgroup, row_group, alpha=base)
        # Greater than all others: empty slots are a separate run whose sums are never used.
        last = entries * base
        key, order = torch.sort(key.masked_fill(labels.queue_groups < 0, last), stable=True)
        empty = key == last
        filled = filled - empty.sum()
    elif labels.queue_subgroups is not None and labels.subgroups is not None:
        base = entries + 1
        (key,), (row_key,) = _ranks(labels.queue_subgroups[None], labels.subgroups[None])
        key, order = torch.sort(key, stable=True)
        row_group.zero_()
    elif labels.any_weight is not None:
        key.zero_()
        row_group.zero_()

    kinds = []
    if labels.same_weight is not None:
        kinds.append((labels.same_weight, key, row_key))
    if labels.any_weight is not None:
        of_group = key if base == 1 else key.div(base, rounding_mode="floor")
        kinds.append((labels.any_weight, of_group, row_group))
    if not kinds:
        none = key.new_empty((0, entries))
        return Runs(order, empty, filled, none.to(dtype), none, key.new_empty((0, rows)))
    weight, keys, wanted = (torch.stack(parts) for parts in zip(*kinds, strict=True))
    if order is not None:
        weight = weight.index_select(1, order)
    return Runs(order, empty, filled, weight.to(dtype), torch.searchsorted(keys, keys), _find(keys, wanted))


def _ranks(queue_ids: Tensor, row_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks in [0, Q) of the ids of entries (T, Q) and rows (T, N): equal for equal ids, in the order of the ids.

    A row has -1 if its id is negative or no entry has it.
    """
    ids = torch.sort(queue_ids).values
    return torch.searchsorted(ids, queue_ids), _find(ids, row_ids).masked_fill_(row_ids < 0, -1)


def _find(keys: Tensor, wanted: Tensor) -> Tensor:
    """Place (T, N) of the first of the ascending `keys` (T, Q) equal to each wanted one (T, N), -1 if there is none."""
    entries = keys.shape[1]
    if entries == 0:
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(keys, wanted)
    return place.masked_fill_(keys.gather(1, place.clamp_max(entries - 1)) != wanted, -1)

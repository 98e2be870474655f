"""Rows and tiles of the similarity matrix, shared by the operations that walk it piece by piece.

The 2N rows of a rank are its q rows, then its k rows, normalised and sorted by group. Sorting gathers the pairs that
are not negatives into blocks on the diagonal, so that most tiles need no mask and those inside one group no work.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

NORM_FLOOR = 1e-8
"""A row is divided by max(norm, NORM_FLOOR), as torch.cosine_similarity does."""

TILE_CPU = 1024
"""Side of a tile on a CPU: 4 MiB of float32, which stays in the last-level cache."""

TILE_ACCELERATOR = 4096
"""Side of a tile elsewhere: large enough to hide the launches."""


class SortedRows(NamedTuple):
    """The 2N rows of one rank, sorted by group; a row that takes no part is zero."""

    z: Tensor  # (2N, D) normalised rows in the dtype of the computation
    norm: Tensor  # (2N,) what the rows were divided by
    group: Tensor  # (2N,) int64, ascending
    order: Tensor  # (2N,) int64: sorted row i was row order[i] of cat(q, k)
    partner: Tensor  # (2N,) int64: sorted place of the same pair in the other view


def sorted_rows(q: Tensor, k: Tensor, groups: Tensor) -> SortedRows:
    """Normalise the rows of q and k, (N, D) each, and sort them by their (N,) groups."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    group, order = torch.sort(torch.cat([groups, groups]), stable=True)
    x = torch.cat([q.to(dtype), k.to(dtype)]).index_select(0, order)
    norm = torch.linalg.vector_norm(x, dim=1).clamp_min_(NORM_FLOOR)
    z = x.div_(norm.unsqueeze(1)).masked_fill_((group < 0).unsqueeze(1), 0.0)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    return SortedRows(z, norm, group, order, place.roll(-q.shape[0]).index_select(0, order))


class Tile(NamedTuple):
    """Rows [top, bottom) against columns [left, right) of the similarity matrix."""

    rows: slice
    columns: slice
    masked: bool  # some of its pairs are no negatives

    @property
    def on_diagonal(self) -> bool:
        return self.rows == self.columns


def tiles(row_group: Tensor, column_group: Tensor, *, symmetric: bool) -> Iterator[Tile]:
    """Tiles that hold negative pairs, given the ascending groups of rows and columns.

    With `symmetric`, where rows and columns are the same, only tiles on and above the diagonal. On a CPU the groups
    at the tile edges tell which tiles are empty or need no mask; elsewhere, reading them would stop the host, so
    that every tile is visited and masked.
    """
    side = TILE_CPU if row_group.device.type == "cpu" else TILE_ACCELERATOR
    row_spans, column_spans = _spans(row_group, side), _spans(column_group, side)
    for index, (rows, row_low, row_high) in enumerate(row_spans):
        for columns, low, high in column_spans[index if symmetric else 0 :]:
            if row_high is None or high is None or row_low is None or low is None:
                yield Tile(rows, columns, masked=True)
            elif row_high < 0 or high < 0 or row_low == row_high == low == high:
                continue
            else:
                dense = min(row_low, low) >= 0 and (row_high < low or high < row_low)
                yield Tile(rows, columns, masked=not dense)


def no_negatives(tile: Tile, row_group: Tensor, column_group: Tensor) -> Tensor:
    """(rows, columns) bool: the pairs of the tile that are not negatives."""
    row, column = row_group[tile.rows].unsqueeze(1), column_group[tile.columns].unsqueeze(0)
    return (row == column).logical_or_(row < 0).logical_or_(column < 0)


def workspace(z: Tensor) -> Tensor:
    """Memory for the largest tile among rows like `z`."""
    side = min(TILE_CPU if z.device.type == "cpu" else TILE_ACCELERATOR, z.shape[0])
    return z.new_empty(side * side)


def similarities(z_rows: Tensor, z_columns: Tensor, tile: Tile, memory: Tensor) -> Tensor:
    """(rows, columns) products of the rows and columns of one tile, written into `memory`."""
    a, b = z_rows[tile.rows], z_columns[tile.columns]
    out = memory[: a.shape[0] * b.shape[0]].view(a.shape[0], b.shape[0])
    return torch.mm(a, b.T, out=out)


def _spans(group: Tensor, side: int) -> list[tuple[slice, int | None, int | None]]:
    """Slices of at most `side` rows, each with its lowest and highest group where those can be read cheaply."""
    slices = [slice(start, min(start + side, group.numel())) for start in range(0, group.numel(), side)]
    if group.device.type != "cpu":
        return [(span, None, None) for span in slices]
    values = group.numpy()
    return [(span, int(values[span.start]), int(values[span.stop - 1])) for span in slices]

"""Rows, shards and tiles of the similarity matrix, for the operations that compute it tile by tile.

The 2N rows of a rank are its q rows and its k rows. They are divided into shards of `SHARD_PAIRS` pairs and sorted by
group within each shard. Pairs of rows that are not negatives then form blocks on the diagonals, so that most tiles need
no mask and tiles inside one group are skipped. If every rank has whole shards, the order of all rows does not depend on
the number of ranks. Sums over columns run shard by shard, and tile by tile within each, so their bits do not depend on
it either.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pscl_kernels.norms import row_norms

SHARD_PAIRS = 4096
"""Pairs of a shard. Larger shards are cut by fewer group edges, smaller ones divide more batch sizes. A multiple of the
sides of all tiles and of the vector length of elementwise operations, which handle a remainder by other code."""

TILE_CPU = 1024
"""Side of a tile on a CPU: 4 MiB of float32, which fits into the last-level cache."""

TILE_ACCELERATOR = 4096
"""Side of a tile on other devices: large enough to hide the launches."""


class Sorting(NamedTuple):
    """Order of the 2N rows of one rank by shard, and by group within each shard."""

    label: Tensor  # (2N,) int64: ~group, which is negative, or 0 if the row takes no part; ascending in each shard
    order: Tensor  # (2N,) int64: sorted row i was row order[i] of cat(q, k)
    partner: Tensor  # (2N,) int64: sorted place of the same pair in the other view


class SortedRows(NamedTuple):
    """The 2N sorted rows of one rank; a row that takes no part is zero."""

    z: Tensor  # (2N, D) normalised rows in the dtype of the computation
    norm: Tensor  # (2N,) divisor of each row
    sorting: Sorting


def shard_rows(rows: int) -> int:
    """Rows per shard if a rank has `rows` rows; its last shard may have fewer."""
    return max(1, min(2 * SHARD_PAIRS, rows))


def sort_by_group(groups: Tensor) -> Sorting:
    """Order of the rows of N pairs by their (N,) int64 groups; stable, q rows first."""
    n = groups.numel()
    label = torch.where(groups < 0, 0, ~groups)
    whole = n // SHARD_PAIRS * SHARD_PAIRS
    parts = []
    for first, last, pairs in ((0, whole, SHARD_PAIRS), (whole, n, n - whole)):
        if first < last:
            shards = label[first:last].view(-1, pairs)
            sorted_label, place = torch.sort(torch.cat([shards, shards], 1), dim=1, stable=True)
            start = torch.arange(first, last, pairs, device=groups.device).unsqueeze(1)
            parts.append((sorted_label.flatten(), (place % pairs + start + place // pairs * n).flatten()))
    if not parts:
        return Sorting(label, label.clone(), label.clone())
    label, order = (torch.cat(part) for part in zip(*parts, strict=True))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(2 * n, device=order.device))
    return Sorting(label, order, place.roll(-n).index_select(0, order))


def sorted_rows(q: Tensor, k: Tensor, groups: Tensor) -> SortedRows:
    """Normalise the rows of q and k, (N, D) each, and sort them by shard and by their (N,) groups."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    sorting = sort_by_group(groups)
    x = torch.cat([q.to(dtype), k.to(dtype)]).index_select(0, sorting.order)
    norm = row_norms(x)
    z = x.div_(norm).masked_fill_((sorting.label == 0).unsqueeze(1), 0.0)
    return SortedRows(z, norm.squeeze(1), sorting)


class Block(NamedTuple):
    """Consecutive rows of one rank, within one shard."""

    rank: int
    shard: int  # counted within the rank
    span: slice
    lowest: int | None  # labels of the first and the last row, if they can be read without waiting
    highest: int | None

    def of(self, tensor: Tensor) -> Tensor:
        """The block of a tensor (world, 2N, ...) of all ranks."""
        return tensor[self.rank, self.span]


class Side(NamedTuple):
    """Contribution of a tile to the rows of one of its blocks."""

    span: slice  # the rows
    dim: int  # dimension of the tile to sum over
    columns: Block  # the block that acts on them


class Tile(NamedTuple):
    """Block `rows` against block `columns`, which has the higher rank or position."""

    rows: Block
    columns: Block
    masked: bool  # some of its pairs are not negatives

    def sides(self, rank: int) -> Iterator[Side]:
        """The blocks of `rank` to which the tile contributes."""
        if self.rows.rank == rank:
            yield Side(self.rows.span, 1, self.columns)
        if self.columns.rank == rank and self.rows is not self.columns:
            yield Side(self.columns.span, 0, self.rows)


def tiles(label: Tensor, rank: int, other: int) -> Iterator[Tile]:
    """Tiles that contain negatives between the rows of two ranks, given the labels (world, 2N) of all.

    Each tile appears once, in the same orientation on every rank, and each block meets the others in ascending order.
    On a CPU the labels at the edges show which tiles are empty or need no mask. On other devices reading them would
    make the host wait, so every tile is visited and masked.
    """
    mine = _blocks(label[rank], rank)
    theirs = mine if other == rank else _blocks(label[other], other)
    for index, block in enumerate(mine):
        for second in theirs[index:] if other == rank else theirs:
            masked = _masked(block, second)
            if masked is not None:
                yield Tile(block, second, masked) if rank <= other else Tile(second, block, masked)


def no_negatives(tile: Tile, label: Tensor) -> Tensor:
    """(rows, columns) bool: the pairs of the tile that are not negatives."""
    row, column = tile.rows.of(label).unsqueeze(1), tile.columns.of(label).unsqueeze(0)
    return (row == column).logical_or_(row == 0).logical_or_(column == 0)


def workspace(z: Tensor) -> Tensor:
    """Memory for the largest tile among rows like `z`, (world, 2N, D)."""
    side = min(_side(z), z.shape[1])
    return z.new_empty(side * side)


def similarities(z: Tensor, tile: Tile, memory: Tensor) -> Tensor:
    """(rows, columns) products of the rows and columns of one tile of z (world, 2N, D), written into `memory`."""
    a, b = tile.rows.of(z), tile.columns.of(z)
    out = memory[: a.shape[0] * b.shape[0]].view(a.shape[0], b.shape[0])
    return torch.mm(a, b.T, out=out)


def _side(tensor: Tensor) -> int:
    return TILE_CPU if tensor.device.type == "cpu" else TILE_ACCELERATOR


def _blocks(label: Tensor, rank: int) -> list[Block]:
    """The rows of one rank, of labels (2N,), in blocks of the side of a tile."""
    rows, side = label.numel(), _side(label)
    shard = shard_rows(rows)
    spans = [
        (start // shard, first, min(first + side, start + shard, rows))
        for start in range(0, rows, shard)
        for first in range(start, min(start + shard, rows), side)
    ]
    edges: list[tuple[int | None, int | None]] = [(None, None)] * len(spans)
    if label.device.type == "cpu":
        places = torch.tensor(
            [(first, last - 1) for _, first, last in spans], dtype=torch.int64, device="cpu"
        )
        edges = [(low, high) for low, high in label[places].tolist()]
    return [
        Block(rank, number, slice(first, last), *edge)
        for (number, first, last), edge in zip(spans, edges, strict=True)
    ]


def _masked(a: Block, b: Block) -> bool | None:
    """Whether a tile of two blocks needs a mask; None if it contains no negatives."""
    if a.lowest is None or a.highest is None or b.lowest is None or b.highest is None:
        return True
    if a.lowest == 0 or b.lowest == 0 or a.lowest == a.highest == b.lowest == b.highest:
        return None
    return max(a.highest, b.highest) == 0 or (a.highest >= b.lowest and b.highest >= a.lowest)

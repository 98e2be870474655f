"""A first-in-first-out queue of keys of earlier steps, the same on every rank.

Shape legend: I images of capacity, E entries per image (1, or one per class), Q = I * E, D width, n images of a part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class QueueRows(NamedTuple):
    """The entries of a queue as rows, image after image; views of the buffers, not copies."""

    keys: Tensor
    """(Q, D), float32 as buffers are by default."""
    groups: Tensor
    """Class of each entry, int64 (Q,); 0 where there are none, -1 in an empty slot."""
    production_batches: Tensor
    """Production batch of each entry, int64 (Q,); -1 unknown."""
    ages: Tensor
    """Steps since the entry came, int64 (Q,): 1 for those of the last step; of an empty slot any number."""


class KeyQueue(nn.Module):
    """Keys of the last images, for the contrast of later steps.

    A forward pass *stages* its keys, and :meth:`advance`, after the optimiser step, puts them in. All parts of an
    accumulated step hence meet the same queue, as if they were one batch, and no buffer changes before the backward
    pass has read it. Buffers are part of a checkpoint; empty slots have group -1 and take no part.

    Args:
        images: Images that the queue holds, I. Any number: it need not be a multiple of the batch.
        width: Width of a key, D.
        entries: Entries per image, E.
    """

    keys: Tensor
    groups: Tensor
    production_batches: Tensor
    ages: Tensor
    cursor: Tensor

    def __init__(self, images: int, width: int, entries: int = 1) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(images, entries, width))
        self.register_buffer("groups", torch.full((images, entries), -1))
        self.register_buffer("production_batches", torch.full((images,), -1))
        self.register_buffer("ages", torch.zeros(images, dtype=torch.int64))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self._staged: list[tuple[Tensor, Tensor, Tensor]] = []

    def rows(self) -> QueueRows:
        """All entries, empty slots included."""
        entries = self.groups.shape[1]
        return QueueRows(
            self.keys.flatten(0, 1),
            self.groups.flatten(),
            self.production_batches.repeat_interleave(entries),
            self.ages.repeat_interleave(entries),
        )

    @torch.no_grad()
    def stage(
        self, keys: Tensor, groups: Tensor | None = None, production_batches: Tensor | None = None
    ) -> None:
        """Keep the keys of this rank's part until :meth:`advance`. Nothing happens in evaluation mode.

        Args:
            keys: (n, E, D), or (n, D) where E is 1. n is the same on every rank.
            groups: int64 (n, E) or (n,), -1 where there is no entry; all 0 when absent.
            production_batches: int64 (n,); all -1 when absent.
        """
        if not self.training:
            return
        keys = keys.detach().to(self.keys.dtype).reshape(len(keys), *self.keys.shape[1:])
        if groups is None:
            groups = torch.zeros_like(keys[..., 0], dtype=torch.int64)
        if production_batches is None:
            production_batches = torch.full_like(groups[:, 0], -1)
        self._staged.append((keys, groups.reshape(keys.shape[:2]), production_batches))

    @torch.no_grad()
    def advance(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Put in what was staged since the last call, of all ranks, and let all others age by one step.

        Rank r's i-th image of W ranks is number i * W + r of the batch, and enters in this order.
        """
        if not self._staged:
            return
        keys, groups, production_batches = (
            _all_images(torch.cat(parts), process_group) for parts in zip(*self._staged, strict=True)
        )
        self._staged.clear()
        images = len(self.keys)
        # Where a step has more images than the queue has room for, the last ones stay.
        first = max(0, len(keys) - images)
        place = (self.cursor + torch.arange(first, len(keys), device=self.keys.device)) % images
        self.ages += 1
        self.keys[place] = keys[first:]
        self.groups[place] = groups[first:]
        self.production_batches[place] = production_batches[first:]
        self.ages[place] = 1
        self.cursor.add_(len(keys)).remainder_(images)


def _all_images(rows: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Rows (n, ...) of every rank in the order of the whole batch, (n * W, ...)."""
    if process_group is None:
        return rows
    parts = [torch.empty_like(rows) for _ in range(process_group.size())]
    dist.all_gather(parts, rows.contiguous(), group=process_group)
    return torch.stack(parts, dim=1).flatten(0, 1)

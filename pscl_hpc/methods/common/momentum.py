"""Momentum encoders and the queues of their keys (MoCo, BYOL).

Shape legend: I images of a queue, E entries per image (1, or one per class), Q = I * E, D width of a key, n images of a
batch.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pscl_hpc.config import Fraction, Strict

_M = TypeVar("_M", bound=nn.Module)


class MomentumConfig(Strict):
    """Update of the momentum encoder after each step: ``slow = m * slow + (1 - m) * fast``."""

    start: Fraction = 0.99
    """m in the first step. The copy lags by about 1 / (1 - m) steps, so use 0.9 for a run of a few hundred steps."""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant, or a half cosine from ``start`` to 1 at the last step (BYOL, section 3.3)."""


class MomentumEncoder(nn.Module, Generic[_M]):
    """A copy of ``module`` whose parameters are a moving average, without gradient.

    Buffers are not averaged. In training mode the batch normalisation of the copy thus uses the statistics of its own
    batch and updates its own running statistics, as in the released MoCo and BYOL.

    Args:
        module: The network to copy. It is not part of the state of the copy.
    """

    module: _M
    """The copy."""

    def __init__(self, module: _M) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """Output of the copy, without gradient."""
        return self.module(*args)

    @torch.no_grad()
    def follow(self, module: _M, momentum: float) -> None:
        """``slow = momentum * slow + (1 - momentum) * fast`` for every parameter.

        Args:
            module: The network that was copied.
            momentum: 0 copies the network, 1 leaves the copy unchanged.

        Raises:
            ValueError: the networks have different numbers of parameters.
        """
        slow = [weight.detach() for weight in self.module.parameters()]
        fast = [weight.detach() for weight in module.parameters()]
        if len(slow) != len(fast):
            raise ValueError(
                f"the source has {len(fast)} parameters, but the momentum encoder has {len(slow)}"
            )
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)


def momentum_at(config: MomentumConfig, progress: float) -> float:
    """Momentum at ``progress`` (0 to 1) of the run; cosine: ``1 - (1 - start) (cos(pi progress) + 1) / 2``."""
    if config.schedule == "constant":
        return config.start
    return 1.0 - (1.0 - config.start) * (math.cos(math.pi * progress) + 1.0) / 2.0


class QueueRows(NamedTuple):
    """The entries of a queue as rows, image after image. Views of the buffers, not copies."""

    keys: Tensor
    """(Q, D), float32."""
    groups: Tensor
    """Class of each entry, int64 (Q,); 0 without classes, -1 in an empty slot."""
    production_batches: Tensor
    """Production batch of each entry, int64 (Q,); -1 if unknown."""
    ages: Tensor
    """Age of each entry in steps, int64 (Q,): 1 for the last step; arbitrary in an empty slot."""


class KeyQueue(nn.Module):
    """First-in-first-out queue of the keys of the last images, equal on every rank.

    A forward pass *stages* its keys; :meth:`advance` adds them after the optimiser step. All passes of an accumulated
    step thus use the same queue, as one batch would, and no buffer changes before the backward pass has read it.
    Buffers are part of a checkpoint. Empty slots have group -1 and are ignored.

    Args:
        images: Capacity in images, I; not necessarily a multiple of the batch.
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
        """All entries, including empty slots."""
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
        """Keep the keys of this rank until :meth:`advance`. Does nothing in evaluation mode.

        Args:
            keys: (n, E, D), or (n, D) if E is 1. n is the same on every rank.
            groups: int64 (n, E) or (n,), -1 where there is no entry; by default all 0.
            production_batches: int64 (n,); by default all -1.
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
        """Add the staged keys of all ranks, and increase the age of all other entries by 1.

        The i-th image of rank r of W ranks is number i * W + r of the batch; keys are added in this order.
        """
        if not self._staged:
            return
        keys, groups, production_batches = (
            _all_images(torch.cat(parts), process_group) for parts in zip(*self._staged, strict=True)
        )
        self._staged.clear()
        images = len(self.keys)
        # If a step has more images than the capacity, the last ones are kept.
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


def at_least_float32(values: Tensor) -> Tensor:
    """16-bit values in float32; other values unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

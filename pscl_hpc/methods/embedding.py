"""What a loss needs of images: the boundary between the part of a method that works on pixels and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Embedding:
    """What the loss needs of some images of a batch, references first.

    It is computed for parts of a batch and joined, so it should be small: projections, not maps. Names are the method's
    own; all parts of a batch have the same ones. B images.
    """

    images: Mapping[str, Tensor]
    """One entry per image, (B, ...)."""
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """Sums over the images; those of parts are added."""
    references: int = 0
    """Number of references among the images."""

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order: those of ``images`` first."""
        return [*self.images.values(), *self.sums.values()]

    def leaves(self, trained: Sequence[bool]) -> Embedding:
        """The same values as the start of a new graph; ``trained`` says which tensors get a gradient."""
        found = [
            tensor.detach().requires_grad_(wanted)
            for tensor, wanted in zip(self.tensors(), trained, strict=True)
        ]
        count = len(self.images)
        return replace(
            self,
            images=dict(zip(self.images, found[:count], strict=True)),
            sums=dict(zip(self.sums, found[count:], strict=True)),
        )

    def gradients(self, rows: Tensor) -> list[Tensor | None]:
        """For each tensor the gradient of the images at ``rows``, int64; None where there is none."""
        found: list[Tensor | None] = [
            None if tensor.grad is None else tensor.grad[rows] for tensor in self.images.values()
        ]
        return found + [tensor.grad for tensor in self.sums.values()]


def join(parts: Sequence[Embedding], order: Tensor) -> Embedding:
    """The embedding of a batch from those of its parts.

    Args:
        parts: At least one.
        order: Place of each image of the batch in the concatenated parts, int64 (B,).
    """
    first = parts[0]
    return Embedding(
        {name: torch.cat([part.images[name] for part in parts])[order] for name in first.images},
        {name: torch.stack([part.sums[name] for part in parts]).sum(dim=0) for name in first.sums},
        sum(part.references for part in parts),
    )

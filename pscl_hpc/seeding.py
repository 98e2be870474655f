"""Random numbers as pure functions of (seed, purpose, step, ...): nothing to save, nothing to restore.

Every draw of a run comes from a generator keyed by its purpose, so a resumed run, or one with any number of reading
processes, draws the same numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

_T = TypeVar("_T")


def derive_seed(seed: int, *key: int | str) -> int:
    """A 63-bit seed from a run's seed and a key; strings enter by their CRC-32."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def numpy_generator(seed: int, *key: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, *key)))


def torch_generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose on one device."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *key))


@dataclass(frozen=True)
class Slots:
    """Slots of some images in the batch of all ranks.

    Random numbers are drawn for all ``total`` slots of a batch, of which a rank takes its own, so that the numbers do
    not depend on how many ranks there are.
    """

    places: tuple[int, ...]
    total: int

    @classmethod
    def all(cls, total: int) -> Slots:
        """Every slot of a batch."""
        return cls(tuple(range(total)), total)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one forward pass, the same for any number of ranks.

    They are keyed by the image's slot in the batch of all ranks.
    """

    seed: int
    number: int
    """Number of the pass."""
    slots: tuple[int, ...]
    """Slot of each image of this rank in the batch of all ranks."""
    device: torch.device | str = "cpu"
    found: dict[str, Any] = field(default_factory=dict, compare=False)
    """Results of :meth:`once`."""

    def once(self, purpose: str, compute: Callable[[], _T]) -> _T:
        """Result of ``compute``, which has no gradient; a second pass over the same images takes it from the first."""
        if purpose not in self.found:
            self.found[purpose] = compute()
        result: _T = self.found[purpose]
        return result

    def each(self, purpose: str, images: Iterable[int]) -> list[torch.Generator]:
        """One generator for each of these images of this rank."""
        return [
            torch_generator(self.seed, purpose, self.number, self.slots[image], device=self.device)
            for image in images
        ]

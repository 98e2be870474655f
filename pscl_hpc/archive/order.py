"""The order in which a run visits images: a pure function of seed, epoch and world size.

Nothing is restored on resume because nothing is stored: step s of epoch e sees the same images whatever
happened before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def epoch_order(count: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of ``range(count)``, shape (count,), keyed by (seed, epoch) alone."""
    if count < 0 or epoch < 0:
        raise ValueError(f"count and epoch must not be negative, got {count} and {epoch}")
    # Philox is specified by its paper and never changes between numpy versions; the shuffle is spelt out as
    # an argsort of its raw words because Generator.permutation carries no such promise.
    bits = np.random.Philox(np.random.SeedSequence((seed & (1 << 64) - 1, epoch)))
    keys = bits.random_raw(count) if count else np.empty(0, np.uint64)
    return np.argsort(np.asarray(keys, np.uint64), kind="stable").astype(np.int64)


def rank_slice(
    order: npt.NDArray[np.int64], rank: int, world_size: int, drop_last: bool = True
) -> npt.NDArray[np.int64]:
    """The part of ``order`` that one rank visits: every ``world_size``-th entry from ``rank`` on.

    All ranks get the same number. ``drop_last`` leaves out the last ``len(order) % world_size`` entries;
    otherwise the order is padded with its own first entries.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside a world of {world_size}")
    rest = len(order) % world_size
    if rest and drop_last:
        order = order[: len(order) - rest]
    elif rest:
        order = np.concatenate([order, np.resize(order, world_size - rest)])
    return order[rank::world_size]

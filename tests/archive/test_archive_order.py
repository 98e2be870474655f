"""Order is a pure function of seed, epoch and world size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pscl_hpc.archive import epoch_order, rank_slice


@given(count=st.integers(0, 300), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_a_permutation_that_depends_on_nothing_else(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(count))
    np.testing.assert_array_equal(order, epoch_order(count, seed=seed, epoch=epoch))


def test_the_order_is_fixed_for_all_versions() -> None:
    """A change here would break the resume of every run."""
    assert epoch_order(8, seed=0, epoch=0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(count=st.integers(0, 60), world=st.integers(1, 9), drop_last=st.booleans())
def test_ranks_share_the_order_evenly(count: int, world: int, drop_last: bool) -> None:
    order = epoch_order(count, seed=1, epoch=2)
    parts = [rank_slice(order, rank, world, drop_last) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    together = np.stack(parts, axis=1).reshape(-1)
    if drop_last:
        np.testing.assert_array_equal(together, order[: count // world * world])
    else:
        assert set(together) == set(order)
        assert count <= len(together) < count + world
        np.testing.assert_array_equal(together[:count], order)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="rank 2 is outside"):
        rank_slice(np.arange(4), 2, 2)
    with pytest.raises(ValueError, match="must not be negative"):
        epoch_order(-1, seed=0, epoch=0)

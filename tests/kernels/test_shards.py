"""Shards of rows: their order, sums that do not depend on the number of ranks, and several ranks against one."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pscl_kernels import patch_nt_xent
from pscl_kernels.patch_nt_xent import chunked, operation
from pscl_kernels.patch_nt_xent import rows as row_module

from .cases import GROUPINGS, grouping, loss_and_gradients, rows, truth
from .ranks import compare_ranks_with_oracle

# torch computes what is left over from whole vectors by other code: parts of a multiple of 64 rows have no such rest.
PAIRS, SHARDS, WIDTH = 32, 6, 5
SETTINGS = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(row_module, "SHARD_PAIRS", PAIRS)
    monkeypatch.setattr(row_module, "TILE_CPU", PAIRS)


def computed(q, k, groups, tau, world):
    """(lse, grad_q, grad_k, <z, dx>) of all rows, as `world` ranks with equal parts compute them in turn."""
    temperature = torch.tensor(tau, dtype=torch.float64)
    parts = list(zip(q.chunk(world), k.chunk(world), groups.chunk(world), strict=True))
    own = [chunked.prepare(*part, temperature) for part in parts]
    x, label = (torch.stack([getattr(p, name) for p in own]) for name in ("x", "label"))
    sums = []
    for rank, p in enumerate(own):
        local = chunked.local_sums(p.x, p.label, p.positive, temperature) if world > 1 else None
        sums.append(chunked.log_sums(x, label, p.positive, rank, local, temperature))
    lse = torch.stack(sums)
    gradients = [
        chunked.row_gradients(
            torch.tensor(0.3, dtype=lse.dtype),
            *part[:2],
            operation.Saved(x, lse, label, p.norm, p.order, p.partner, (label < 0).sum().clamp_min(1)),
            rank,
            temperature,
        )
        for rank, (p, part) in enumerate(zip(own, parts, strict=True))
    ]
    return lse.flatten(), *(torch.cat(parts) for parts in zip(*gradients, strict=True))


@SETTINGS
@given(
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(GROUPINGS),
    tau=st.sampled_from([0.01, 0.1, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    world=st.sampled_from([2, 3, 6]),
)
def test_any_number_of_ranks_gives_the_same_bits(seed, kind, tau, dtype, world):
    n = PAIRS * SHARDS
    q, k = rows(n, WIDTH, dtype, seed)
    groups = grouping(kind, n, seed)
    groups = torch.arange(n) if groups is None else groups
    alone, shared = (computed(q, k, groups, tau, number) for number in (1, world))
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@SETTINGS
@given(
    order=st.permutations(range(3)),
    n=st.sampled_from([3, 9, 96, 105, 120]),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(GROUPINGS),
    tau=st.sampled_from([0.01, 0.5]),
)
def test_order_of_ranks_does_not_matter(order, n, seed, kind, tau):
    """Whole shards or not: the gradient follows its rows, to rounding."""
    q, k = rows(n, WIDTH, seed=seed)
    groups = grouping(kind, n, seed)
    groups = torch.arange(n) if groups is None else groups
    moved = torch.arange(n).view(3, -1)[torch.tensor(order)].flatten()
    _, grad_q, grad_k, _ = computed(q, k, groups, tau, 3)
    _, moved_dq, moved_dk, _ = computed(q[moved], k[moved], groups[moved], tau, 3)
    torch.testing.assert_close(moved_dq, grad_q[moved], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moved_dk, grad_k[moved], rtol=1e-9, atol=1e-11)


@SETTINGS
@given(groups=st.lists(st.integers(-3, 3), max_size=100))
def test_sorting(groups):
    """Each shard holds its pairs, both views of each, by group; absent ones last."""
    given = torch.tensor(groups, dtype=torch.int64)
    n = len(groups)
    label, order, partner = row_module.sort_by_group(given)
    assert sorted(order.tolist()) == list(range(2 * n))
    assert torch.equal(order[partner], (order + n) % max(2 * n, 1))
    group = given.repeat(2)[order]
    assert torch.equal(label, torch.where(group < 0, 0, -1 - group))
    for first in range(0, 2 * n, 2 * PAIRS):
        place = slice(first, first + 2 * PAIRS)
        assert torch.equal(label[place], label[place].sort().values)
        pairs = order[place] % n
        assert sorted(set(pairs.tolist())) == list(range(first // 2, min(first // 2 + PAIRS, n)))


@pytest.mark.parametrize("first", [8, 16, 24, 32])
def test_tiles_of_several_groups_against_shards_of_one(first):
    """A tile at the edge of two groups has negatives in a shard that is all of one of them."""
    groups = torch.tensor([0] * first + [1] * (PAIRS - first) + [0] * PAIRS + [1] * PAIRS + [2] * 9 + [-1])
    q, k = rows(len(groups), WIDTH)
    ours = loss_and_gradients(lambda a, b, t: patch_nt_xent(a, b, groups, temperature=t), q, k, 0.3)
    for mine, true in zip(ours, truth(q, k, groups, 0.3), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_agree_with_one(world, tmp_path):
    compare_ranks_with_oracle(world, tmp_path, "float64", ["reference", "chunked"], rtol=1e-10, atol=1e-12)


def test_ranks_agree_with_one_in_float32(tmp_path):
    compare_ranks_with_oracle(2, tmp_path, "float32", ["chunked"], rtol=2e-5, atol=1e-6)

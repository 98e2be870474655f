"""Momentum encoders and queues against simulations with one image at a time."""

from __future__ import annotations

import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pscl_hpc.methods.common.momentum import KeyQueue, MomentumConfig, MomentumEncoder, momentum_at


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_slow_copy_is_the_moving_average_of_the_weights() -> None:
    torch.manual_seed(0)
    fast = network()
    slow = MomentumEncoder(fast)
    wanted = [weight.detach().double() for weight in fast.parameters()]
    for momentum in (0.9, 0.5, 1.0, 0.99):
        with torch.no_grad():
            for weight in fast.parameters():
                weight.add_(torch.randn_like(weight))
        slow.follow(fast, momentum)
        wanted = [
            momentum * old + (1 - momentum) * new.detach().double()
            for old, new in zip(wanted, fast.parameters(), strict=True)
        ]
    for got, want in zip(slow.parameters(), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
        assert not got.requires_grad
    slow.follow(fast, 0.0)
    for got, source in zip(slow.parameters(), fast.parameters(), strict=True):
        assert torch.equal(got, source)


def test_slow_copy_has_its_own_statistics_and_no_gradient() -> None:
    torch.manual_seed(0)
    fast = network()
    slow = MomentumEncoder(fast)
    output = slow(torch.randn(8, 3))
    assert not output.requires_grad
    assert bool((slow.module[1].running_mean != 0).any())
    assert bool((fast[1].running_mean == 0).all())
    mean = slow.module[1].running_mean.clone()
    slow.follow(fast, 0.0)
    assert torch.equal(slow.module[1].running_mean, mean), "buffers are not averaged"
    assert len(dict(slow.named_parameters())) == len(dict(fast.named_parameters())), (
        "the source is not inside"
    )
    with pytest.raises(ValueError, match=r"2 .* 6"):
        slow.follow(nn.Linear(3, 4), 0.5)


def test_momentum_schedule() -> None:
    constant, cosine = MomentumConfig(start=0.9), MomentumConfig(start=0.9, schedule="cosine")
    assert [momentum_at(constant, p) for p in (0.0, 0.5, 1.0)] == [0.9] * 3
    assert momentum_at(cosine, 0.0) == pytest.approx(0.9)
    assert momentum_at(cosine, 0.5) == pytest.approx(0.95)
    assert momentum_at(cosine, 1.0) == 1.0
    assert momentum_at(cosine, 0.25) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)


@settings(deadline=None, max_examples=60)
@given(
    capacity=st.integers(1, 9),
    entries=st.integers(1, 3),
    steps=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=7),
    seed=st.integers(0, 1000),
)
def test_queue_equals_a_list_of_images(
    capacity: int, entries: int, steps: list[list[int]], seed: int
) -> None:
    """Any capacity, any batch (also none, also more than the capacity), steps of several parts."""
    random = torch.Generator().manual_seed(seed)
    queue = KeyQueue(capacity, 2, entries)
    wanted: deque[list[object]] = deque(maxlen=capacity)
    for parts in steps:
        fresh = []
        for count in parts:
            keys = torch.randn(count, entries, 2, generator=random)
            groups = torch.randint(-1, 3, (count, entries), generator=random)
            production_batches = torch.randint(-1, 2, (count,), generator=random)
            before = queue.keys.clone()
            queue.stage(keys, groups, production_batches)
            assert torch.equal(queue.keys, before), "staged keys are not yet in the queue"
            fresh += [
                [k.tolist(), g.tolist(), int(c)]
                for k, g, c in zip(keys, groups, production_batches, strict=True)
            ]
        queue.advance()
        for image in wanted:
            image[3] = int(str(image[3])) + 1
        wanted.extend([*image, 1] for image in fresh)
    rows = queue.rows()
    got = [
        [
            rows.keys.view(capacity, entries, 2)[i].tolist(),
            rows.groups.view(capacity, entries)[i].tolist(),
            int(rows.production_batches.view(capacity, entries)[i, 0]),
            int(rows.ages.view(capacity, entries)[i, 0]),
        ]
        for i in range(capacity)
    ]
    start = int(queue.cursor)
    ordered = got[start:] + got[:start]
    assert ordered[capacity - len(wanted) :] == list(wanted)
    assert all(set(image[1]) == {-1} for image in ordered[: capacity - len(wanted)]), (
        "empty slots have group -1"
    )


def test_queue_defaults_and_evaluation_mode() -> None:
    queue = KeyQueue(3, 2)
    queue.eval()
    queue.stage(torch.ones(2, 2))
    queue.train()
    queue.advance()
    assert bool((queue.rows().groups == -1).all())
    queue.stage(torch.ones(2, 2, requires_grad=True, dtype=torch.bfloat16))
    queue.advance()
    assert queue.rows().groups.tolist() == [0, 0, -1]
    assert queue.rows().production_batches.tolist() == [-1, -1, -1]
    assert queue.keys.dtype == torch.float32
    assert not queue.keys.requires_grad


def test_queue_continues_from_its_state() -> None:
    random = torch.Generator().manual_seed(1)
    steps = [torch.randn(3, 2, generator=random) for _ in range(6)]
    whole, first, second = KeyQueue(7, 2), KeyQueue(7, 2), KeyQueue(7, 2)
    for queue, part in ((whole, steps), (first, steps[:3])):
        for keys in part:
            queue.stage(keys)
            queue.advance()
    second.load_state_dict(first.state_dict())
    for keys in steps[3:]:
        second.stage(keys)
        second.advance()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name

"""What the heartbeat takes for a lost rank, by a clock that the test sets."""

from __future__ import annotations

import itertools

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from pscl_hpc.training import heartbeat
from pscl_hpc.training.heartbeat import Heartbeat

TIMEOUT, FIRST = 10.0, 100.0


@pytest.fixture
def beats() -> Heartbeat:
    return Heartbeat(HashStore(), 0, ["n1", "n2"], TIMEOUT, FIRST)


def note(beats: Heartbeat, clock: float, pulse: int, tick: int, step: int = 0) -> None:
    """Both ranks have reported this when the clock showed ``clock``."""
    beats._clock = beats._contact = clock
    for peer in beats._peers:
        beats._note(peer, f"{pulse} {tick} {step} computing")


def test_a_slow_first_step_is_not_a_missing_heartbeat(beats: Heartbeat) -> None:
    note(beats, 0.0, 1, 2)
    # The first step took long and has just ended here, which is not in the store yet.
    beats.beat(1, "reading images")
    beats._own.tick = 3
    note(beats, 5 * TIMEOUT, 2, 2)
    assert not beats._findings()
    note(beats, 5 * TIMEOUT + 1, 3, 3, step=1)
    assert not beats._findings()
    # From the second step on the shorter limit counts.
    note(beats, 6 * TIMEOUT + 2, 4, 3, step=1)
    assert "no rank made progress" in beats._findings()


def test_a_first_step_that_never_ends_is_reported(beats: Heartbeat) -> None:
    note(beats, 0.0, 1, 2)
    note(beats, FIRST + 1, 2, 2)
    assert "no rank made progress" in beats._findings()


def test_a_silent_rank_is_named(beats: Heartbeat) -> None:
    note(beats, 0.0, 1, 5, step=3)
    beats._clock = beats._contact = TIMEOUT + 1
    beats._note(beats._peers[0], "2 5 3 computing")
    assert "rank 1 on n2 (its last step: 3)" in beats._findings()


def test_time_in_which_the_process_did_not_run_does_not_count(
    beats: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(beats, 0.0, 1, 5, step=3)
    # The machine suspends the process for an hour between any two looks.
    clock = itertools.count(0.0, 3600.0)
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: next(clock))
    looks = iter([False] * 5 + [True])
    monkeypatch.setattr(beats._stop, "wait", lambda seconds: next(looks))
    beats._judge()
    assert not beats.verdict
    assert 0 < beats._clock <= 5 * 2 * beats._interval

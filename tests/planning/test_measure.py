"""Rates measured on this machine: with a clock that is set, or with counted work in place of seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.models.unet import Block
from pscl_hpc.planning import load_rates, measure, measure_rates, save_rates
from tests.planning.tiny import tiny


def clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Fake clock: these seconds, three times each, then zero."""
    times = iter([each for each in seconds for _ in range(3)])

    def timed(call: Callable[[], None], device: torch.device) -> float:
        call()
        return next(times, 0.0)

    monkeypatch.setattr(measure, "_timed", timed)


def test_times_that_do_not_grow_with_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 2.0, 1.0)
    with pytest.raises(JobError, match="--images"):
        measure_rates(tiny(), [2, 4])


def test_rates_are_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 1.0, 1.5)
    found = measure_rates(tiny(), [2, 4])
    # Image rows and the patches of two scales: one and 3 classes x (4, 8) templates for each image and reference.
    assert [c.pairs_per_image for c in found.contrasts] == pytest.approx([1, 12, 24])
    assert [c.pairs_fixed for c in found.contrasts] == pytest.approx([1, 12, 24])
    assert (found.step_fixed, found.step_per_image) == pytest.approx((0.5, 0.25))
    assert found.memory_fixed > 1e7, "the process itself"
    assert len(found.measured["forward_seconds"]) == 2
    assert found.normalisations == 8, "two in each of three encoder blocks, one in each of two decoder blocks"
    assert found.keys["model.widths"] == [4, 8, 8]
    save_rates(tmp_path / "rates.json", found)
    assert load_rates(tmp_path / "rates.json") == found


def test_views_are_part_of_the_timed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made, inside = [], []
    real, clocked = measure.make_views, measure._timed

    def views(*arguments: Any) -> Any:
        made.append(len(arguments))
        return real(*arguments)

    def timed(call: Callable[[], None], device: torch.device) -> float:
        before = len(made)
        seconds = clocked(call, device)
        inside.append(len(made) - before)
        return seconds + 0.1 * len(inside)

    monkeypatch.setattr(measure, "make_views", views)
    monkeypatch.setattr(measure, "_timed", timed)
    measure_rates(tiny(), [2, 4])
    assert inside[: 2 * measure._REPEATS] == [1] * 2 * measure._REPEATS


@pytest.mark.parametrize(
    ("seconds", "used", "said"),
    [
        ([1.0, 1.1, 1.2], [1.0, 1.1, 1.2], ""),
        ([1.0, 1.1, 1.2], [3.9, 4.0, 4.1], ""),
        ([1.71, 1.8, 1.9], [0.45, 0.5, 0.5], "1.71 s, but only 0.45 s of processor time"),
        ([1.0, 1.1, 2.5], [1.0, 1.1, 2.5], "factor of 2.5"),
    ],
)
def test_times_of_a_busy_machine_are_called_so(seconds: list[float], used: list[float], said: str) -> None:
    found = measure.disturbance([measure._Pass(2, seconds, used, 0, [])])
    assert said in found
    assert bool(said) == bool(found)


def test_activation_checkpointing_is_part_of_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = Block.forward
    monkeypatch.setattr(Block, "forward", lambda block, x: calls.append(block) or plain(block, x))
    monkeypatch.setattr(measure, "_forward", lambda *_: 0.1)  # has no backward pass
    counts = []
    for again in (False, True):
        calls.clear()
        clock(monkeypatch, 1.0, 1.5)
        measure_rates(tiny(runtime={"device": "cpu", "activation_checkpointing": again}), [2, 4])
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0]


def test_views_too_small_to_be_measured_are_refused() -> None:
    with pytest.raises(UserError, match=r"views\.size=\[32,32\]"):
        measure_rates(tiny(views={"size": [16, 32]}), [2, 4])


class Work(TorchDispatchMode):
    """Counts the numbers that operations compute: in place of seconds, which depend on what else the machine does."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.numbers += sum(each.numel() for each in tree_leaves(found) if isinstance(each, torch.Tensor))
        return found


def test_the_forward_pass_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(call: Callable[[], None], device: torch.device) -> float:
        with Work() as work:
            call()
        return float(work.numbers)

    monkeypatch.setattr(measure, "_timed", timed)
    monkeypatch.setattr(measure, "_seconds_per_square", lambda *_: 0.0)
    found = measure_rates(tiny(model={"name": "unet", "widths": [4, 8, 8], "norm": "group"}), [2, 8])
    whole, forward = (
        found.step_fixed + 8 * found.step_per_image,
        found.forward_fixed + 8 * found.forward_per_image,
    )
    assert 0 < forward < whole / 2, "no backward pass"

"""Forms of an operation are recorded together or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.forms import Forms, measure


class Stopwatch:
    """A benchmark fixture with given times of the rounds."""

    def __init__(self, seconds: list[float], *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.extra_info: dict[str, Any] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=seconds))
        self.calls = 0

    def pedantic(self, step: Any, *, rounds: int, warmup_rounds: int) -> None:
        for _ in range(rounds + warmup_rounds):
            step()
            self.calls += 1


@pytest.fixture
def forms() -> Forms:
    return Forms("an-operation", "tiles", ("whole", "tiles"), {"rows": 4})


def test_all_forms_make_a_result(forms: Forms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSCL_BENCH_RESULTS", str(tmp_path))
    for form, seconds in (("whole", 4.0), ("tiles", 1.0)):
        forms.measure(form, Stopwatch([seconds] * 3), lambda: None, rounds=3, warmup_rounds=1)
        forms.measured[form]["peak_bytes"] = int(100 * seconds)
    forms.record("time.perf_counter")
    result = json.loads((tmp_path / "an-operation.json").read_text())["result"]
    assert result["ratios"] == {"whole": {"time_ratio": 0.25, "memory_ratio": 0.25}}
    assert result["measured"]["whole"]["median_seconds"] == 4.0
    assert result["shape"] == {"rows": 4}


def test_a_missing_form_makes_none(forms: Forms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSCL_BENCH_RESULTS", str(tmp_path))
    forms.measure("whole", Stopwatch([1.0]), lambda: None, rounds=1, warmup_rounds=0)
    forms.record("time.perf_counter")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_measured_where_benchmarks_are_switched_off() -> None:
    off = Stopwatch([], enabled=False)
    assert measure(off, lambda: None, rounds=2, warmup_rounds=1) == {}
    assert off.calls == 3

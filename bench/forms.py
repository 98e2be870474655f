"""Implementations (forms) of one operation, timed by pytest-benchmark and recorded together."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.record import record

COMMAND = " ".join(["pytest", *sys.argv[1:]])


def peak_bytes(call: Callable[[], object]) -> int:
    """Greatest number of bytes that torch's CPU allocator holds during `call` beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    held: int = max(itertools.accumulate((e.nbytes() for e in events if e.name() == "[memory]"), initial=0))
    return held


def measure(benchmark: Any, step: Callable[[], object], *, rounds: int, warmup_rounds: int) -> dict[str, Any]:
    """Time and peak memory of a step.

    Returns:
        Seconds (quantiles 0.2, 0.5 and 0.8) and bytes beyond what was held before; {} if pytest-benchmark is disabled.
    """
    benchmark.pedantic(step, rounds=rounds, warmup_rounds=warmup_rounds)
    if not benchmark.enabled:
        return {}
    seconds = torch.tensor(benchmark.stats.stats.data)
    values = torch.quantile(seconds, torch.tensor([0.2, 0.5, 0.8])).tolist()
    found = dict(zip(("q20_seconds", "median_seconds", "q80_seconds"), values, strict=True))
    found["peak_bytes"] = peak_bytes(step)
    benchmark.extra_info.update(found)
    return found


@dataclass
class Forms:
    """Measurements of all forms of one operation.

    Args:
        name: Name of the result.
        ours: Form with which the others are compared.
        names: All forms.
        shape: Shape of the inputs.
    """

    name: str
    ours: str
    names: Sequence[str]
    shape: dict[str, Any]
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    def measure(
        self, form: str, benchmark: Any, step: Callable[[], object], *, rounds: int, warmup_rounds: int
    ) -> None:
        """Measure one form."""
        if found := measure(benchmark, step, rounds=rounds, warmup_rounds=warmup_rounds):
            self.measured[form] = found

    def record(self, timer: str) -> None:
        """Write the result, with the ratios of ours to the other forms, if every form was measured."""
        if set(self.measured) != set(self.names):
            return
        ours = self.measured[self.ours]
        ratios = {
            form: {
                "time_ratio": ours["median_seconds"] / found["median_seconds"],
                "memory_ratio": ours["peak_bytes"] / found["peak_bytes"],
            }
            for form, found in self.measured.items()
            if form != self.ours
        }
        content = {"shape": self.shape, "timer": timer, "measured": self.measured, "ratios": ratios}
        record(self.name, content, command=COMMAND)

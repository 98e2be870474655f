"""Forms of one operation, timed one after another by pytest-benchmark and recorded together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.peak_memory import peak_bytes
from bench.record import record

COMMAND = " ".join(["pytest", *sys.argv[1:]])


def measure(benchmark: Any, step: Callable[[], object], *, rounds: int, warmup_rounds: int) -> dict[str, Any]:
    """Time a step and take its peak memory; empty where pytest-benchmark is switched off.

    Returns:
        Seconds at the quantiles .2, .5 and .8, and bytes above what was held before.
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
    """What is measured of each form.

    Args:
        name: Of the result.
        ours: The form that the others are compared with.
        names: All forms.
        shape: Of the inputs.
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
        """Write the result, with ratios of ours to each other form, if every form was measured."""
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

"""Where the time of a call goes, by torch's profiler."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from bench.gpu.setting import Setting

SHOWN = 20
"""Kernels (on a CPU: operators) that are listed."""


def profile(setting: Setting, call: Callable[[], object], trace: Path | None = None) -> dict[str, Any]:
    """Per call: wall time under the profiler, time of the device, launches, and the kernels that take longest.

    With `trace`, also writes a Chrome trace there.
    """
    calls = 1 if setting.tiny else 3
    activities = [ProfilerActivity.CPU] if setting.tiny else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    call()
    _wait(setting)
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        _wait(setting)
        wall = 1e3 * (time.perf_counter() - start) / calls
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    rows = []
    for event in profiler.key_averages():
        # An annotation covers kernels that are counted by themselves.
        on_device = setting.tiny or (event.device_type.name == "CUDA" and not event.is_user_annotation)
        microseconds = event.self_cpu_time_total if setting.tiny else event.self_device_time_total
        if on_device and microseconds:
            rows.append({"name": event.key, "ms": microseconds / 1e3 / calls, "calls": event.count / calls})
    rows.sort(key=lambda row: -row["ms"])
    return {
        "wall_ms": wall,
        "device_ms": sum(row["ms"] for row in rows),
        "launches": sum(row["calls"] for row in rows),
        "longest": [{**row, "name": row["name"][:120]} for row in rows[:SHOWN]],
    }


def _wait(setting: Setting) -> None:
    if not setting.tiny:
        torch.cuda.synchronize()

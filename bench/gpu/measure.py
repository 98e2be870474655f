# mypy: disable-error-code="no-untyped-call"
"""Time and memory of a call."""

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.setting import Setting
from bench.peak_memory import peak_bytes

Measured = dict[str, Any]

OUT_OF_MEMORY = "out of memory"
"""The one failure that is a finding, and stands."""

FLUSH_BYTES = 256 * 2**20
"""More than any second-level cache so far."""


def measure(
    setting: Setting, call: Callable[[], object], *, seconds: float = 0.5, most: int = 100
) -> Measured:
    """20/50/80 quantiles of the milliseconds of a call, and its peak memory beyond what was held before.

    On a GPU each call is timed by events between which nothing else runs, and the second-level cache is flushed before
    each. Calls are repeated for about `seconds`, after as many as it takes to warm up (compilation included).
    A call that runs out of memory, or cannot run at all, gives {"failed": why}.
    """
    return attempt(lambda: _on_cpu(call) if setting.tiny else _on_gpu(call, seconds, most))


def attempt(call: Callable[[], Measured]) -> Measured:
    """What `call` gives, or {"failed": why}: one shape, or one peer, that fails does not end a part."""
    try:
        return call()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"failed": OUT_OF_MEMORY}
    except Exception as error:
        # It may be of any kind; whatever it is belongs into the result.
        return {"failed": reason(error)}


def reason(error: BaseException) -> str:
    """First line of an error, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _on_cpu(call: Callable[[], object], repeats: int = 1) -> Measured:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return {**_quantiles(times), "peak_bytes": peak_bytes(call), "repeats": repeats}


def _on_gpu(call: Callable[[], object], seconds: float, most: int) -> Measured:
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    start, end = _events()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - held
    repeats = max(3, min(most, int(seconds * 1e3 / max(start.elapsed_time(end), 1e-3))))
    for _ in range(min(5, repeats // 5)):
        call()
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    pairs = [_events() for _ in range(repeats)]
    for start, end in pairs:
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in pairs]
    return {**_quantiles(times), "peak_bytes": peak, "repeats": repeats}


def _quantiles(milliseconds: list[float]) -> Measured:
    values = torch.quantile(torch.tensor(milliseconds), torch.tensor([0.2, 0.5, 0.8])).tolist()
    return dict(zip(("q20_ms", "median_ms", "q80_ms"), values, strict=True))


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

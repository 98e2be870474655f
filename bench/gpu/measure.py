"""Time and memory of a call on a GPU."""

from collections.abc import Callable

import torch

Measured = dict[str, float]


def measure(call: Callable[[], object], *, seconds: float = 1.0, most: int = 200) -> Measured:
    """20/50/80 quantiles of the milliseconds of a call, and its peak memory beyond what was held before.

    Each call is timed by events between which nothing else runs; the second-level cache is flushed before each.
    Calls are repeated for about `seconds`, after as many as it takes to warm up (compilation included).
    """
    for _ in range(3):
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
    repeats = max(5, min(most, int(seconds * 1e3 / max(start.elapsed_time(end), 1e-3))))
    flush = torch.empty(128 * 2**20, dtype=torch.int8, device="cuda")
    pairs = [_events() for _ in range(repeats)]
    for start, end in pairs:
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times = torch.tensor([start.elapsed_time(end) for start, end in pairs])
    low, median, high = torch.quantile(times, torch.tensor([0.2, 0.5, 0.8])).tolist()
    return {"q20_ms": low, "median_ms": median, "q80_ms": high, "peak_bytes": float(peak)}


def measure_or_reason(call: Callable[[], object]) -> Measured | dict[str, str]:
    """As `measure`; where the call runs out of memory, that."""
    try:
        return measure(call)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"failed": "out of memory"}


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

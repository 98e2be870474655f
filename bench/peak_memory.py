"""Peak memory of a call on a CPU."""

import itertools
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """Greatest number of bytes that torch's CPU allocator holds during `call` beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    held: int = max(itertools.accumulate((e.nbytes() for e in events if e.name() == "[memory]"), initial=0))
    return held

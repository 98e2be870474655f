"""How a stage in the foreground ends when it is asked to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pscl_hpc.errors import EXIT_STOPPED


@contextmanager
def ends_when_asked() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the stage after its step, with one sentence on how to go on."""
    from pscl_hpc.training import StopRequested, read_place, stop_on_signals

    try:
        with stop_on_signals():
            yield
    except StopRequested as stop:
        if read_place().first:
            print(f"stopped: {stop.reason}; {stop.hint}", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED) from None

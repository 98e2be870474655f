"""Ctrl-C and SIGTERM for a stage that runs in the foreground."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pscl_hpc.errors import EXIT_STOPPED


@contextmanager
def stop_after_step() -> Iterator[None]:
    """On Ctrl-C or SIGTERM, let the stage stop after its step, print how to resume it, and exit with code 130."""
    from pscl_hpc.training import StopRequested, read_place, stop_on_signals

    try:
        with stop_on_signals():
            yield
    except StopRequested as stop:
        if read_place().first:
            print(f"stopped: {stop.reason}; {stop.hint}", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED) from None

"""Ctrl-C and SIGTERM for commands, and for a stage that runs in the foreground."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pscl_hpc.errors import EXIT_STOPPED, EXIT_TERMINATED

_exit_code: int | None = None


def end_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end the command through its clean-up.

    Without a handler, a plain ``kill`` would leave a run marked as running.
    """
    signal.signal(signal.SIGTERM, _terminated)
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # else it is ignored, as in the background
        signal.signal(signal.SIGINT, _interrupted)


def signalled() -> int | None:
    """The exit code if a signal has ended the command; None if none has.

    An error afterwards is a consequence of it: compiled modules turn the exception of a handler into their own.
    """
    return _exit_code


def _terminated(number: int, frame: object) -> NoReturn:
    global _exit_code
    _exit_code = EXIT_TERMINATED
    sys.exit(EXIT_TERMINATED)


def _interrupted(number: int, frame: object) -> NoReturn:
    global _exit_code
    _exit_code = EXIT_STOPPED
    raise KeyboardInterrupt


@contextmanager
def stop_after_step() -> Iterator[None]:
    """On Ctrl-C or SIGTERM, let the stage stop after its step, print how to resume it, and exit with code 130."""
    from pscl_hpc.training import StopRequested, read_place, stop_on_signals

    def tell() -> None:
        if read_place().first and os.isatty(2):
            # Not print, which a signal may have interrupted while it held its lock.
            os.write(2, b"\nstopping after this step; a second Ctrl-C ends at once\n")

    try:
        with stop_on_signals(tell):
            yield
    except StopRequested as stop:
        if read_place().first:
            print(f"stopped: {stop.reason}; {stop.hint}", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED) from None


@contextmanager
def stop_in_training() -> Iterator[None]:
    """As :func:`stop_after_step` for a stage in a longer command, which a late request ends, too."""
    from pscl_hpc.training import StopRequested, stop_reason

    with stop_after_step():
        yield
        if (reason := stop_reason()) is not None:
            raise StopRequested(reason)

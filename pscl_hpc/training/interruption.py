"""Asking a training to stop. A signal cannot interrupt a collective, so its handler only sets a flag.

The trainers look at the flag between two steps, agree over the ranks, save, and raise :class:`StopRequested`.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pscl_hpc.errors import EXIT_STOPPED

_reason: str | None = None


class StopRequested(Exception):
    """The training stopped where it was asked to, with its state saved.

    Args:
        reason: Why, in a few words.
        mend: How to go on, a sentence's second half.
    """

    def __init__(self, reason: str, mend: str = "the same command goes on from here") -> None:
        super().__init__(reason)
        self.reason = reason
        self.mend = mend


def how_to_go_on(run: Path, step: int) -> str:
    """What a stopped run's user is told."""
    return f"saved after step {step}, goes on when the same command is given with run={shlex.quote(str(run))}"


def request_stop(reason: str) -> None:
    """Ask for a stop at the next step boundary. Safe in a signal handler; the first reason stays."""
    global _reason
    if _reason is None:
        _reason = reason


def stop_reason() -> str | None:
    """Why a stop was asked for; None when nobody did."""
    return _reason


def clear_stop() -> None:
    """Forget the request."""
    global _reason
    _reason = None


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM ask for a stop; a second SIGINT ends the process at once. For the main thread."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop_reason() is not None and number == signal.SIGINT:
            # Not an exception: it could surface inside a collective, whose peers would wait.
            os._exit(EXIT_STOPPED)
        request_stop("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    clear_stop()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

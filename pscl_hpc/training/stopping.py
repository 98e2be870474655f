"""Requests to stop. A signal cannot interrupt a collective operation, so its handler only sets a flag.

The training loop looks at the flag between two steps, agrees over the ranks, saves, and raises :class:`StopRequested`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pscl_hpc.errors import EXIT_STOPPED

_reason: str | None = None


class StopRequested(Exception):
    """The training stopped on request, with its state saved.

    Args:
        reason: Why, in a few words.
        hint: How to resume, as the second half of a sentence.
    """

    def __init__(self, reason: str, hint: str = "run the same command to resume") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def request_stop(reason: str) -> None:
    """Ask for a stop after the current step. Safe in a signal handler; the first reason is kept."""
    global _reason
    if _reason is None:
        _reason = reason


def stop_reason() -> str | None:
    """Why a stop was requested; None when none was."""
    return _reason


def clear_stop() -> None:
    """Forget the request."""
    global _reason
    _reason = None


@contextmanager
def stop_on_signals(requested: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let SIGINT and SIGTERM request a stop; a second SIGINT ends the process at once. For the main thread.

    Args:
        requested: Called in the handler of a signal, after the request.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if stop_reason() is not None and number == signal.SIGINT:
            # No exception: it could be raised inside a collective operation, for which the other ranks would wait.
            os._exit(EXIT_STOPPED)
        request_stop("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        requested()

    clear_stop()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Errors that reach a user, and the exit codes of the console command.

Everything that a user can cause is a :class:`UserError` of one sentence, which names the file, key or rank and the fix.
The console command prints this sentence alone and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
"""All of the work was done."""
EXIT_SKIPPED = 1
"""Done, but some items were skipped; each one was named."""
EXIT_INPUT = 2
"""Wrong input or configuration; nothing was changed."""
EXIT_FAILED = 3
"""The job itself failed."""
EXIT_STOPPED = 130
"""Stopped on request, for example by Ctrl-C, as shells report it; a run can be resumed."""
EXIT_TERMINATED = 143
"""Ended by SIGTERM, as shells report it."""


class UserError(Exception):
    """Wrong input or configuration. The message is one sentence: what is wrong, where, and the fix."""


class JobError(Exception):
    """The job itself failed after its input was accepted, for example a loss that became NaN."""


MOST_OPTIONS = 8
"""Options that :func:`did_you_mean` lists: an archive has thousands of ids."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest option, else the first few options."""
    choices = list(options)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    if not choices:
        return ""
    more = len(choices) - MOST_OPTIONS
    return f"; choose one of: {', '.join(choices[:MOST_OPTIONS])}" + (f" and {more} more" if more > 0 else "")

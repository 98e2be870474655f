"""Errors that reach a user, and the exit codes of the console command.

Everything that a user can cause is raised as :class:`UserError`: one sentence that names the file, key or rank and
the fix. The console command prints only this sentence and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
"""Success."""
EXIT_SKIPPED = 1
"""Finished, but some items were skipped; each was reported."""
EXIT_INPUT = 2
"""Invalid input or configuration; nothing was changed."""
EXIT_FAILED = 3
"""The job itself failed."""
EXIT_STOPPED = 130
"""Stopped on request, for example by Ctrl-C, as shells report it; the run can be resumed."""
EXIT_TERMINATED = 143
"""Terminated by SIGTERM, as shells report it."""


class UserError(Exception):
    """Invalid input or configuration. The message is one sentence: where, what is wrong, and the fix."""


class JobError(Exception):
    """The job failed although its input was valid, for example because the loss became NaN."""


MOST_OPTIONS = 8
"""Limit for the list of :func:`did_you_mean`: an archive has thousands of ids."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the nearest option, or a list of the first few options."""
    choices = list(options)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    if not choices:
        return ""
    more = len(choices) - MOST_OPTIONS
    return f"; choose one of: {', '.join(choices[:MOST_OPTIONS])}" + (f" and {more} more" if more > 0 else "")

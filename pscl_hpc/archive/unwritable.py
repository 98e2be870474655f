"""A full disk, a quota or a missing right while an archive is written, as one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pscl_hpc.errors import UserError


class Unwritable(UserError):
    """An archive cannot be written; ``reason`` is what the system said."""

    def __init__(self, path: Path, reason: str, mend: str = "mend that, or name another place") -> None:
        super().__init__(f"{path} cannot be written ({reason}); {mend}")
        self.reason = reason


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Around writing ``path``: :class:`Unwritable` for what the system refuses, other exceptions as they are."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise Unwritable(path, reason) from error


def _reason(error: OSError | RuntimeError) -> str | None:
    """What the system said; None when it said nothing.

    HDF5 tells it in the midst of lines about itself, and by a RuntimeError where it is noticed on closing a file.
    """
    if number := re.search(r"errno = (\d+)", str(error)):
        return os.strerror(int(number[1]))
    return (error.strerror or str(error)) if isinstance(error, OSError) else None

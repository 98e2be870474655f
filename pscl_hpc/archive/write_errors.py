"""What the operating system reports while an archive is written, as one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pscl_hpc.errors import UserError


class WriteError(UserError):
    """An archive cannot be written; ``reason`` is what the operating system reported."""

    def __init__(self, path: Path, reason: str, fix: str = "fix that, or write to another place") -> None:
        super().__init__(f"{path} cannot be written ({reason}); {fix}")
        self.reason = reason


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise :class:`WriteError` for errors of the operating system while ``path`` is written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # HDF5 hides the error number in a long message, and raises a RuntimeError when a file is closed.
        if number := re.search(r"errno = (\d+)", str(error)):
            reason = os.strerror(int(number[1]))
        elif isinstance(error, OSError):
            reason = error.strerror or str(error)
        else:
            raise
        raise WriteError(path, reason) from error

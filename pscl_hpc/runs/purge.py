"""When a site that deletes files which were not used for some days will delete the first file that a run needs."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_DAY_S = 86400.0


@dataclass(frozen=True)
class Purge:
    """The first file that goes."""

    file: str
    time: float
    """Unix seconds."""

    @property
    def date(self) -> str:
        return datetime.datetime.fromtimestamp(self.time).date().isoformat()

    def __str__(self) -> str:
        return f"{self.file} may be purged from {self.date} unless it is read or written before"


def first_purged(paths: Iterable[Path], days: int) -> Purge | None:
    """Of files, and of the files in folders; the last use is the latest of reading, writing and changing.

    Args:
        paths: Those that do not exist are left out.
        days: After how many days without use a file is deleted.
    """
    found = []
    for path in paths:
        files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
        for file in files:
            try:
                status = file.stat()
            except OSError:
                continue
            found.append((max(status.st_atime, status.st_mtime, status.st_ctime), str(file)))
    if not found:
        return None
    used, name = min(found)
    return Purge(name, used + days * _DAY_S)

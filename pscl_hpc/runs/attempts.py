"""Numbered attempts at a run, of which only the newest may write.

A lock excludes other processes on the same machine, but not those on a node that lost the network and that the
scheduler replaced. So every attempt takes the next number by creating ``attempts/<number>``, which succeeds for one
process only, and checks before each write whether a later attempt exists.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from pscl_hpc.errors import JobError
from pscl_hpc.files import create_text, write_text, writing

FOLDER = "attempts"
_NEWEST = "newest"
"""Repeats the highest number: network file systems may cache a folder's list, but not the content of an opened file."""


class Attempt:
    """The attempt of this process."""

    def __init__(self, run: Path, number: int) -> None:
        self.run = run
        self.number = number

    @classmethod
    def begin(cls, run: Path, about: dict[str, Any]) -> Attempt:
        """Take the next number. ``about`` describes this process for the attempt that it replaces.

        Raises:
            JobError: it cannot be written.
        """
        folder = run / FOLDER
        with writing(folder, "an attempt"):
            folder.mkdir(exist_ok=True)
            number = _newest(folder) + 1
            while not create_text(folder / str(number), json.dumps(about) + "\n"):
                number += 1
            if _newest(folder) == number:
                write_text(folder / _NEWEST, f"{number}\n")
        return cls(run, number)

    def check(self) -> None:
        """Check that this is the newest attempt; to be called before every write.

        Raises:
            JobError: another attempt has taken over.
        """
        newest = _newest(self.run / FOLDER)
        if newest > self.number:
            raise JobError(
                f"{self.run}: attempt {newest} ({describe(self.run, newest)}) has taken over this run; attempt "
                f"{self.number} (this process) ends without further writes"
            )


def newest_attempt(run: Path) -> int:
    """Number of the newest attempt; 0 when there is none."""
    return _newest(run / FOLDER)


def read_about(run: Path, number: int) -> dict[str, Any]:
    """Description of an attempt; empty when it cannot be read."""
    try:
        about = json.loads((run / FOLDER / str(number)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def describe(run: Path, number: int) -> str:
    """Process, node and job of an attempt, for messages."""
    about = read_about(run, number)
    job = f", Slurm job {about['slurm_job']}" if about.get("slurm_job") else ""
    return f"process {about.get('pid', '?')} on {about.get('node', '?')}{job}"


def _newest(folder: Path) -> int:
    found = [0]
    with contextlib.suppress(OSError):
        found += [int(name) for name in os.listdir(folder) if name.isdigit()]
    with contextlib.suppress(OSError, ValueError):
        found.append(int((folder / _NEWEST).read_text(encoding="utf-8")))
    return max(found)

"""Attempts at a run, numbered, so that only the newest one writes.

A lock says who writes on this machine. It says nothing of a node that lost the network and whose tasks run on while
the scheduler starts the run again elsewhere. So every attempt takes the next number by creating ``attempts/<number>``,
which the file system gives to one of them only, and looks before each write whether a later one has begun.
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
"""Repeats the highest number: network file systems look at a file again when it is opened, not so at a folder."""


class Attempt:
    """This process's right to write into a run folder."""

    def __init__(self, run: Path, number: int) -> None:
        self.run = run
        self.number = number

    @classmethod
    def begin(cls, run: Path, about: dict[str, Any]) -> Attempt:
        """Take the next number. ``about`` says who, for the one whom it replaces.

        Raises:
            JobError: when it cannot be written.
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
        """Whether this is still the newest attempt; to be asked before every write.

        Raises:
            JobError: when another has taken over.
        """
        newest = _newest(self.run / FOLDER)
        if newest > self.number:
            raise JobError(
                f"{self.run}: attempt {newest} ({describe(self.run, newest)}) has taken over this run; attempt "
                f"{self.number}, which is this process, ends and writes no more"
            )


def newest_attempt(run: Path) -> int:
    """Number of the newest attempt; 0 where there is none."""
    return _newest(run / FOLDER)


def read_about(run: Path, number: int) -> dict[str, Any]:
    """What an attempt said of itself; empty when it cannot be read."""
    try:
        about = json.loads((run / FOLDER / str(number)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def describe(run: Path, number: int) -> str:
    """An attempt in words."""
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

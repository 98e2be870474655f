"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 1024**3
Level = Literal["ok", "note", "problem"]
"""ok: as it should be. note: works, but something is absent, slow or risky. problem: training cannot run."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    text: str
    """What was found."""
    fix: str = ""
    """What to do about it; empty if there is nothing to do."""
    area: str = ""
    """What was checked, for example ``torch``; set by :func:`pscl_hpc.doctor.run_check`."""

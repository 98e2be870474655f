"""The outcome of one check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]
"""ok: as it should be. note: works, but something is absent, slower or risky. problem: the main job cannot run."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    area: str
    """What was looked at, for example ``torch``."""
    level: Level
    text: str
    """What was found."""
    mend: str = ""
    """What to do about it; empty when there is nothing to do."""


Check = Callable[[], Iterator[Finding]]


def guarded(area: str, check: Check) -> list[Finding]:
    """The findings of a check; a check that breaks is itself a finding, never the end of the report."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:
        found.append(Finding(area, "note", f"could not be examined: {type(error).__name__}: {error}"))
    return found

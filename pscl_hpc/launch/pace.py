"""How long the steps of a run take, from its log: the time that is left, and the notice that its jobs need."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from pscl_hpc.launch.profiles import Profile
from pscl_hpc.runs import RunFolder

WINDOW = 20
"""Logged lines over which the pace is measured."""


def time_left(folder: RunFolder) -> float | None:
    """Seconds to the last step at the pace of the newest attempt's last lines; None where these are too few."""
    begun = _first_steps(folder)
    lines = [line for line in _lines(folder) if not begun or int(line["step"]) > begun[-1]][-WINDOW:]
    if len(lines) < 2:
        return None
    steps = int(lines[-1]["step"]) - int(lines[0]["step"])
    seconds = float(lines[-1]["time"]) - float(lines[0]["time"])
    left = folder.config.schedule.steps - int(lines[-1]["step"])
    return left * seconds / steps if steps > 0 else None


def notice_warning(run: Path, profile: Profile) -> str:
    """A sentence when a run's notice is too short for what its steps and checkpoints took so far, else empty.

    The notice has to cover twice the longest step and the writing of a checkpoint.
    """
    folder = RunFolder.load(run)
    lines = _lines(folder)
    begun = _first_steps(folder)
    paces = [
        (float(after["time"]) - float(before["time"])) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(lines)
        if after["step"] > before["step"]
        and after["time"] > before["time"]
        # What lies between two attempts is no step.
        and not any(before["step"] <= first < after["step"] for first in begun)
    ]
    saving = [float(line["checkpoint_seconds"]) for line in lines if line.get("checkpoint_seconds")]
    if len(paces) < 2:
        return ""
    needed = 2 * (sorted(paces)[-1 - len(paces) // 20] + max(saving, default=0.0))
    if profile.time is None or needed <= profile.signal_delay:
        return ""
    return (
        f"the job is told {profile.signal_delay} s before its time limit, but a step and a checkpoint of this run took "
        f"up to {needed / 2:.0f} s; set signal_delay_s to {math.ceil(needed)} in a profile"
    )


def _lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [line for line in folder.metrics() if "loss" in line]


def _first_steps(folder: RunFolder) -> list[int]:
    """After which step each attempt began that came to its first."""
    return [int(attempt["first_step"]) for attempt in folder.attempts if "first_step" in attempt]

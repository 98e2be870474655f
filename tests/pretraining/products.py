"""What tests read from the folder of a pretraining."""

from __future__ import annotations

import json
from pathlib import Path


def values(run: Path) -> list[dict[str, float]]:
    """The logged lines without what no two runs have in common: times and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    changing = ("time", "images_per_second", "memory_mb", "checkpoint_seconds")
    return [{key: value for key, value in line.items() if key not in changing} for line in lines]

"""Reading a result file, and the Markdown that every table shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"


def load(name: str) -> dict[str, Any]:
    """A result with its command, commit, device and date; raises FileNotFoundError where it was not measured."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def origin(name: str, content: dict[str, Any]) -> str:
    """The line under a table: the file, and what made it where and when."""
    device = content["device"]
    where = ", ".join(device.get("gpu", [])) or f"{device['cpu']}, {device['cpu_count']} cores"
    return (
        f"\n\n`bench/results/{name}.json`: {where}, torch {content['versions']['torch']}, "
        f"{content['date'][:10]}, commit {content['commit'][:7]}; `{content['command']}`"
    )

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


def short(commit: str) -> str:
    """A commit in seven letters, with its mark where the code had been edited."""
    letters, mark, _ = commit.partition("+")
    return letters[:7] + ("+changes" if mark else "")


def origin(name: str, content: dict[str, Any]) -> str:
    """The line under a table: the file, and what made it where and when."""
    device = content["device"]
    where = ", ".join(device.get("gpu", [])) or f"{device['cpu']}, {device['cpu_count']} cores"
    # A study collects runs of its own: what trained them is not what collected them.
    runs = sorted({short(commit) for commit in _commits(content["result"])})
    trained = f" (runs: {', '.join(runs)})" if runs and runs != [short(content["commit"])] else ""
    return (
        f"\n\n`bench/results/{name}.json`: {where}, torch {content['versions']['torch']}, "
        f"{content['date'][:10]}, commit {short(content['commit'])}{trained}; `{content['command']}`"
    )


def _commits(result: Any) -> list[str]:
    rows = result.get("rows", []) if isinstance(result, dict) else []
    return [row["commit"] for row in rows if row.get("commit")]

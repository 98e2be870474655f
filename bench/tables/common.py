"""Result files and Markdown tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"


def load(name: str) -> dict[str, Any]:
    """A result with its command, commit, device and date; raises FileNotFoundError if it was not measured."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def short(commit: str) -> str:
    """The first seven letters of a commit, marked if the code had uncommitted changes."""
    letters, mark, _ = commit.partition("+")
    return letters[:7] + ("+changes" if mark else "")


def origin(name: str, content: dict[str, Any]) -> str:
    """The line under a table: the file, the machine, the date, the commit and the command."""
    device = content["device"]
    where = ", ".join(device.get("gpu", [])) or f"{device['cpu']}, {device['cpu_count']} cores"
    # The commits that trained a study's runs differ from the one that collected them.
    runs = sorted({short(commit) for commit in _commits(content["result"])})
    trained = f" (runs: {', '.join(runs)})" if runs and runs != [short(content["commit"])] else ""
    return (
        f"\n\n`bench/results/{name}.json`: {where}, torch {content['versions']['torch']}, "
        f"{content['date'][:10]}, commit {short(content['commit'])}{trained}; `{content['command']}`"
    )


def _commits(result: Any) -> list[str]:
    rows = result.get("rows", []) if isinstance(result, dict) else []
    return [row["commit"] for row in rows if row.get("commit")]

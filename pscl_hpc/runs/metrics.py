"""metrics.jsonl: one JSON object per line, always with ``step`` and ``time`` (Unix seconds)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pscl_hpc.files import write_text, writing
from pscl_hpc.runs.trackers import Trackers

_TAIL_BYTES = 1 << 16


class MetricsLog:
    """Appends lines; a resumed run drops those after its first step."""

    def __init__(
        self,
        path: Path,
        *,
        trackers: Trackers | None = None,
        guard: Callable[[], None] | None = None,
        listen: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.path = path
        self._listen = listen
        self._guard = guard or (lambda: None)
        self._trackers = trackers or Trackers()

    def rewind(self, step: int) -> None:
        """Drop lines after ``step``, and an incomplete last line.

        Raises:
            JobError: it cannot be written.
        """
        self._guard()
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if int(line["step"]) <= step]
            with writing(self.path):
                write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line. Numbers that are not finite become null, for JSON has no NaN.

        Raises:
            JobError: it cannot be written.
        """
        self._guard()
        line = {"step": step, "time": round(time.time(), 3)}
        line.update({key: _plain(value) for key, value in values.items()})
        with (
            writing(self.path, f"the line of step {step}"),
            self.path.open("a", encoding="utf-8") as handle,
        ):
            handle.write(json.dumps(line) + "\n")
        if self._listen is not None:
            self._listen(line)
        self._trackers.write(step, {key: value for key, value in line.items() if key not in ("step", "time")})

    def close(self) -> None:
        """Flush what trackers hold back."""
        self._trackers.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; none when it does not exist."""
    if not path.exists():
        return []
    return [line for text in path.read_text(encoding="utf-8").splitlines() if (line := _parsed(text))]


def read_last(path: Path, key: str, count: int) -> list[dict[str, Any]]:
    """The last lines of a metrics file that have ``key``, oldest first; only the end of the file is read."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - _TAIL_BYTES))
            texts = handle.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    lines: list[dict[str, Any]] = []
    for text in reversed(texts):
        if len(lines) == count:
            break
        if (line := _parsed(text)) and key in line:
            lines.insert(0, line)
    return lines


def _parsed(text: str) -> dict[str, Any]:
    """A line; empty if it is not complete."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return line if isinstance(line, dict) and "step" in line else {}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

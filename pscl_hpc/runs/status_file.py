"""``status.json`` of a run: what is known of it in one small file, replaced atomically, for other programs.

It is derived from ``run.json`` and ``metrics.jsonl``, and written by the process that works on the run. A process that is
killed cannot write it any more: a run whose ``state`` is running and whose ``updated`` is old was killed or hangs.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pscl_hpc.files import write_json, writing
from pscl_hpc.runs.purge import Purge

STATUS_FILE = "status.json"
PACE_LINES = 20
"""Log lines over which the pace is measured."""
_EVERY_S = 2.0
"""The file is written at most this often for lines of the log."""
_FROM_RECORD = ("kind", "name", "error", "created", "finished")
_FROM_LINE = ("loss", "images_per_second")


class StatusFile:
    """Keeps the file of one run up to date.

    Args:
        run: The run folder.
        checkpoint: Gives the step of the newest checkpoint.
    """

    def __init__(self, run: Path, checkpoint: Callable[[], int | None]) -> None:
        self.path = run / STATUS_FILE
        self._checkpoint = checkpoint
        self._values = _read(self.path)
        self._lines: deque[tuple[int, float]] = deque(maxlen=PACE_LINES)
        self._written = -math.inf

    def record(self, record: Mapping[str, Any], purge: Purge | None = None) -> None:
        """Take over the record of the run and which of its files the site deletes first.

        Raises:
            JobError: it cannot be written.
        """
        attempts = record.get("attempts") or [{}]
        self._values |= {"state": record.get("status") or "prepared", "total": record.get("steps")}
        self._values |= {key: record.get(key) or "" for key in _FROM_RECORD}
        self._values |= {
            "restarts": len(attempts) - 1,
            "ranks": attempts[-1].get("ranks", 1),
            "node": attempts[-1].get("node", ""),
            "job": attempts[-1].get("job", ""),
        }
        self._values |= {"purge_date": purge.date, "purge_file": purge.file} if purge is not None else {}
        if record.get("status") == "done" and not record.get("steps"):
            # A run that does not know its steps before, such as a pixel classifier.
            self._values["total"] = self._values.get("step", 0)
        if record.get("status") != "running":
            self._values |= {"images_per_second": None, "eta_s": None}
            self._lines.clear()
        self._write()

    def line(self, line: Mapping[str, Any]) -> None:
        """Take over a line of the log; lines in quick succession may be left out.

        Raises:
            JobError: it cannot be written.
        """
        self._values["step"] = line["step"]
        if "loss" in line:
            self._values |= {key: line.get(key) for key in _FROM_LINE}
            self._lines.append((int(line["step"]), float(line["time"])))
            (first, began), (last, now) = self._lines[0], self._lines[-1]
            left = int(self._values.get("total") or 0) - last
            self._values["eta_s"] = round(left * (now - began) / (last - first), 1) if last > first else None
        if time.monotonic() - self._written >= _EVERY_S:
            self._write()

    def _write(self) -> None:
        known = {"step": 0, "loss": None, "images_per_second": None, "eta_s": None}
        now = {"checkpoint": self._checkpoint(), "updated": round(time.time(), 3)}
        self._values = {**known, **self._values, **now}
        # Lines may be many steps apart.
        self._values["step"] = max(self._values["step"], self._values["checkpoint"] or 0)
        with writing(self.path):
            write_json(self.path, self._values)
        self._written = time.monotonic()


def _read(path: Path) -> dict[str, Any]:
    """What an earlier process wrote; empty if there is nothing to be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

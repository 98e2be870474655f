"""What a study is doing: bars on a terminal, one line per event elsewhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pscl_hpc.runs.folder import METRICS_FILE
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE
from pscl_hpc.study.plan import Job
from pscl_hpc.study.schedule import Outcome

_LOOK_S = 1.0
_TAIL = 4096


class Display:
    """Shows the jobs of a study. Use as a context manager.

    Args:
        total: Jobs of the study.
        done: Of these, done before.
        limit: Jobs at a time.
        show: False is silent.
    """

    def __init__(self, total: int, done: int, limit: int, *, show: bool = True) -> None:
        self._console = Console(stderr=True, quiet=not show, soft_wrap=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not (show and self._console.is_terminal),
        )
        self._total = total
        self._ended = done
        self._before = done
        self._limit = limit
        self._all = self._bars.add_task("jobs", total=total, completed=done, note="")
        self._running: dict[str, tuple[Job, TaskID, float]] = {}
        self._seconds: dict[str, list[float]] = {}
        self._left: dict[str, int] = {}
        self._looked = 0.0

    def expect(self, jobs: list[Job]) -> None:
        """The jobs to come, by which the time left is judged."""
        for job in jobs:
            self._left[job.config.kind] = self._left.get(job.config.kind, 0) + 1

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: Job) -> None:
        """A job has begun."""
        task = self._bars.add_task(f"  {job.label}", total=job.config.schedule.steps, note="")
        self._running[job.key] = (job, task, time.monotonic())

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended; its result or reason is printed."""
        self._ended += 1
        seconds = ""
        if job.key in self._running:
            _, task, start = self._running.pop(job.key)
            self._bars.remove_task(task)
            took = time.monotonic() - start
            seconds = f" ({took:.0f} s)"
            if outcome.state == "done":
                self._seconds.setdefault(job.config.kind, []).append(took)
        self._left[job.config.kind] = self._left.get(job.config.kind, 1) - 1
        said = result_text(job) if outcome.state == "done" else f"{outcome.state}: {outcome.reason}"
        self._console.print(f"{self._ended}/{self._total} {job.label}: {said}{seconds}", markup=False)
        self._bars.update(self._all, completed=self._ended, note=self._time_left())

    def tick(self) -> None:
        """Look how far the running jobs are, at most once a second."""
        if self._bars.disable or time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        for job, task, _ in self._running.values():
            line = last_line(job.folder / METRICS_FILE)
            loss = line.get("loss")
            note = "" if not isinstance(loss, int | float) else f"loss {loss:.3f}"
            self._bars.update(task, completed=int(line.get("step", 0)), note=note)

    def _time_left(self) -> str:
        """A guess from the jobs of each kind that have ended; empty before the first of a kind."""
        total = 0.0
        for kind, count in self._left.items():
            if count and kind not in self._seconds:
                return ""
            if count:
                total += count * sum(self._seconds[kind]) / len(self._seconds[kind])
        at_once = max(1, min(self._limit, sum(self._left.values())))
        minutes = round(total / at_once / 60)
        return (
            f"about {minutes // 60} h {minutes % 60} min left"
            if minutes >= 60
            else f"about {minutes} min left"
        )


def result_text(job: Job) -> str:
    """What a finished job found, in a few words."""
    try:
        scores: dict[str, Any] = json.loads((job.folder / EVALUATION_FILE).read_text(encoding="utf-8"))[
            "splits"
        ]
    except (OSError, ValueError, KeyError):
        loss = last_line(job.folder / METRICS_FILE).get("loss")
        return "done" if not isinstance(loss, int | float) else f"loss {loss:.3f}"
    dice = [(split, found["mean_dice"]) for split, found in scores.items()]
    return ", ".join(f"{split} Dice {'-' if value is None else f'{value:.3f}'}" for split, value in dice)


def last_line(path: Path) -> dict[str, Any]:
    """The last line of a metrics file that has a loss; empty when there is none."""
    try:
        with path.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - _TAIL))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    for text in reversed(lines):
        try:
            line: Any = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "loss" in line:
            return line
    return {}

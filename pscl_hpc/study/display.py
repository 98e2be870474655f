"""Progress of a study: bars on a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pscl_hpc.errors import UserError
from pscl_hpc.results.evaluation import read_evaluation
from pscl_hpc.runs import read_metrics
from pscl_hpc.runs.record import METRICS_FILE
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE
from pscl_hpc.study.plan import Job
from pscl_hpc.study.schedule import Outcome

_LOOK_S = 1.0


class Display:
    """Shows the jobs of a study. Use as a context manager.

    Args:
        missing: The jobs to run.
        total: All jobs of the study.
        limit: Jobs at a time.
        show: False is silent.
    """

    def __init__(self, missing: list[Job], total: int, limit: int, *, show: bool = True) -> None:
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
        self._limit = limit
        self._left = [job.config.kind for job in missing]
        self._all = self._bars.add_task("jobs", total=total, completed=total - len(missing), note="")
        self._running: dict[str, tuple[Job, TaskID, float]] = {}
        self._seconds: dict[str, list[float]] = {}
        self._looked = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, job: Job) -> None:
        """A job has begun."""
        task = self._bars.add_task(f"  {job.label}", total=_steps(job), note="")
        self._running[job.key] = (job, task, time.monotonic())

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended; its result or reason is printed."""
        seconds = ""
        if job.key in self._running:
            _, task, start = self._running.pop(job.key)
            self._bars.remove_task(task)
            took = time.monotonic() - start
            seconds = f" ({took:.0f} s)"
            if outcome.state == "done":
                self._seconds.setdefault(job.config.kind, []).append(took)
        self._left.remove(job.config.kind)
        count = self._total - len(self._left)
        result = _result(job) if outcome.state == "done" else f"{outcome.state}: {outcome.reason}"
        self._console.print(f"{count}/{self._total} {job.label}: {result}{seconds}", markup=False)
        self._bars.update(self._all, completed=count, note=self._time_left())

    def tick(self) -> None:
        """Read the progress of the running jobs, at most once a second."""
        if self._bars.disable or time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        for job, task, _ in self._running.values():
            line = _last_line(job)
            self._bars.update(task, completed=int(line.get("step", 0)), note=_loss(line))

    def _time_left(self) -> str:
        """An estimate from the jobs of each kind that are done; empty before the first of a kind."""
        if not set(self._left) <= self._seconds.keys():
            return ""
        means = {kind: sum(found) / len(found) for kind, found in self._seconds.items()}
        at_once = max(1, min(self._limit, len(self._left)))
        hours, minutes = divmod(round(sum(means[kind] for kind in self._left) / at_once / 60), 60)
        return f"about {hours} h {minutes} min left" if hours else f"about {minutes} min left"


def _steps(job: Job) -> int | None:
    """Steps of the training loop; a classifier has none."""
    return None if isinstance(job.config, ClassifierConfig) else job.config.schedule.steps


def _result(job: Job) -> str:
    """The result of a finished job in a few words."""
    try:
        splits = read_evaluation(job.folder / EVALUATION_FILE).splits
    except UserError:
        return _loss(_last_line(job)) or "done"
    dice = ((split, scores.mean_dice) for split, scores in splits.items())
    return ", ".join(f"{split} Dice {'-' if value is None else f'{value:.3f}'}" for split, value in dice)


def _last_line(job: Job) -> dict[str, Any]:
    """The last line of the job's metrics that has a loss; empty if there is none."""
    try:
        lines = read_metrics(job.folder / METRICS_FILE)
    except (OSError, UnicodeDecodeError):
        return {}
    return next((line for line in reversed(lines) if "loss" in line), {})


def _loss(line: dict[str, Any]) -> str:
    loss = line.get("loss")
    return f"loss {loss:.3f}" if isinstance(loss, int | float) else ""

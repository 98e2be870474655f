"""Progress bars with rate and time left; not shown when standard error is not a terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A bar over ``total`` units. Use as a context manager and call :meth:`advance` once per unit."""

    def __init__(
        self, title: str, total: int, done: int = 0, *, unit: str = "item", show: bool = True
    ) -> None:
        console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(unit + "s"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not (show and sys.stderr.isatty()),
        )
        self._unit = unit
        self._task = self._bar.add_task(title, total=total, completed=done, note="", rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, note: str = "") -> None:
        """Count one unit as done; ``note`` is shown at the end of the line."""
        speed = self._bar.tasks[0].speed
        rate = (
            ""
            if not speed
            else f"{speed:.2f} {self._unit}s/s"
            if speed >= 0.5
            else f"{1 / speed:.1f} s/{self._unit}"
        )
        self._bar.update(self._task, advance=1, note=note, rate=rate)

"""Which place a job of this machine gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from pscl_hpc.study.process_executor import ProcessPool


class Started:
    """A process that ends when it is told to."""

    places: ClassVar[list[str | None]] = []

    def __init__(self, command: list[str], **options: Any) -> None:
        assert command[:2] == [sys.executable, "-m"]
        self.places.append(options["env"].get("CUDA_VISIBLE_DEVICES"))
        self.stdin = SimpleNamespace(close=lambda: None)
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The GPU of each job that was started."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(Started, "places", [])
    return Started.places


def start(pool: ProcessPool, folder: Path, numbers: range) -> None:
    for number in numbers:
        job: Any = SimpleNamespace(key=f"{number}", folder=folder)
        pool.start(job)


def test_more_jobs_than_gpus_are_spread_over_them(tmp_path: Path, places: list[str | None]) -> None:
    pool = ProcessPool(1, [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"}])
    start(pool, tmp_path, range(5))
    assert places == ["4", "7", "4", "7", "4"]
    # The place that was left is the next one's.
    pool._running["1"][1].code = 0  # type: ignore[attr-defined]
    pool.poll()
    start(pool, tmp_path, range(5, 6))
    assert places[-1] == "7"


def test_jobs_without_gpus_get_no_place(tmp_path: Path, places: list[str | None]) -> None:
    start(ProcessPool(1), tmp_path, range(2))
    assert places == [None, None]

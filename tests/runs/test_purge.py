"""Which file a site deletes first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.runs.purge import first_purged

DAY = 24 * 3600


def test_the_first_is_the_one_that_was_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = {"a": (10, 90, 50), "deep/b": (70, 60, 20), "c": (80, 80, 80)}  # days: read, written, changed
    (tmp_path / "run/deep").mkdir(parents=True)
    for name in used:
        (tmp_path / "run" / name).write_text("")
    stat: Callable[..., os.stat_result] = Path.stat

    def as_if(self: Path, **options: Any) -> Any:
        found = stat(self, **options)
        name = str(self.relative_to(tmp_path / "run")) if self.is_relative_to(tmp_path / "run") else ""
        if name in used:
            read, written, changed = (float(day * DAY) for day in used[name])
            return os.stat_result((*found[:7], read, written, changed))
        return found

    monkeypatch.setattr(Path, "stat", as_if)
    found = first_purged([tmp_path / "run", tmp_path / "no-archive.h5"], 30)
    assert found is not None
    assert (found.file, found.time) == (str(tmp_path / "run/deep/b"), (70 + 30) * DAY)
    assert found.date in ("1970-04-10", "1970-04-11", "1970-04-12")
    assert first_purged([tmp_path / "nothing"], 30) is None

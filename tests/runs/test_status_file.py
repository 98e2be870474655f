"""status.json: small, atomic, and true at every moment of a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.errors import JobError
from pscl_hpc.launch.status import run_status
from pscl_hpc.runs import RunFolder, status_file
from tests.helpers import small_archive, small_config

CPU = torch.device("cpu")


def read(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


@contextmanager
def fails(folder: RunFolder, error: Exception) -> Iterator[None]:
    """A run that ends with an error after the block."""
    with contextlib.suppress(type(error)), folder:
        yield
        raise error


def test_it_follows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_file, "_EVERY_S", 0.0)
    run = tmp_path / "run"
    config = small_config(small_archive(tmp_path / "a.h5"), run, schedule={"steps": 10})
    RunFolder.reserve(config).update(status="queued", steps=10)
    assert (read(run)["state"], read(run)["step"], read(run)["total"]) == ("queued", 0, 10)
    folder = RunFolder.start(config, CPU)
    with fails(folder, JobError("the loss is not finite")):
        assert (read(run)["state"], read(run)["kind"], read(run)["ranks"]) == ("running", "pretrain", 1)
        log = folder.metrics_log()
        for step in (2, 4):
            log.write(step, {"loss": 3.0 / step, "images_per_second": 7.0})
        folder.checkpoints.save(4, {})
        log.write(5, {"dice": 0.5})
        found = read(run)
        assert (found["step"], found["loss"], found["images_per_second"]) == (5, 0.75, 7.0)
        assert (found["checkpoint"], found["restarts"], found["error"]) == (4, 0, "")
        assert found["eta_s"] >= 0
    found = read(run)
    assert (found["state"], found["error"], found["step"]) == ("failed", "the loss is not finite", 5)
    assert (found["images_per_second"], found["eta_s"]) == (None, None)
    with RunFolder.start(config, CPU):
        assert (read(run)["state"], read(run)["restarts"], read(run)["checkpoint"]) == ("running", 1, 4)
    assert read(run)["state"] == "done"


def test_a_checkpoint_may_be_newer_than_the_last_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small_config(small_archive(tmp_path / "a.h5"), run, schedule={"steps": 10})
    folder = RunFolder.start(config, CPU)
    with fails(folder, JobError("the node is lost")):
        folder.metrics_log().write(1, {"loss": 3.0})
        folder.checkpoints.save(4, {})
    assert read(run)["step"] == 4
    assert run_status(run).step == 4


def test_it_is_not_written_for_every_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small_config(small_archive(tmp_path / "a.h5"), run, schedule={"steps": 1000})
    with RunFolder.start(config, CPU) as folder:
        folder.update(status="running")
        written = (run / "status.json").stat().st_mtime_ns
        log = folder.metrics_log()
        for step in range(1, 4):
            log.write(step, {"loss": 1.0})
        changes = (run / "status.json").stat().st_mtime_ns - written
        assert changes == 0 or changes >= status_file._EVERY_S * 1e9
    assert (read(run)["state"], read(run)["step"]) == ("done", 3)


def test_the_end_of_a_run_is_recorded_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    config = small_config(small_archive(tmp_path / "a.h5"), run)
    full = OSError(28, "No space left on device")

    def write(path: Path, value: object) -> None:
        if (run / "reserve").exists():
            raise full
        path.write_text(json.dumps(value))

    with contextlib.suppress(JobError), RunFolder.start(config, CPU) as folder:
        assert (run / "reserve").stat().st_size >= 65536
        monkeypatch.setattr("pscl_hpc.runs.folder.write_json", write)
        monkeypatch.setattr("pscl_hpc.runs.status_file.write_json", write)
        folder.record_first_step(0)
        pytest.fail("the disk is not full")
    record = RunFolder.load(run).record
    assert (record["status"], "No space left on device" in record["error"]) == ("failed", True)
    assert read(run)["state"] == "failed"
    assert not (run / "reserve").exists()

"""Runs that are asked to stop save, tell how to resume, and resume with the same numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pscl_hpc.config import to_yaml
from pscl_hpc.methods import MethodOutput, Views
from pscl_hpc.methods.simclr import Simclr
from pscl_hpc.pretraining import pretrain
from pscl_hpc.runs import CheckpointStore, RunFolder
from pscl_hpc.seeding import Draws
from pscl_hpc.training import StopRequested, clear_stop, request_stop, stop_reason
from tests.helpers import PATIENCE_S, eventually, small_archive, small_config


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("archive") / "small.h5")


def test_the_first_reason_stays_until_it_is_cleared() -> None:
    clear_stop()
    assert stop_reason() is None
    request_stop("one")
    request_stop("two")
    assert stop_reason() == "one"
    clear_stop()
    assert stop_reason() is None


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_to_all_processes_stops_after_the_step(
    archive: Path, tmp_path: Path, number: int, reason: str
) -> None:
    run = tmp_path / "with blank"
    config = small_config(
        archive,
        run,
        schedule={"steps": 100_000},
        runtime={"threads": 1, "workers": 1},
        # More passes in a step than are read ahead: readers have to outlive the signal.
        batch_size=128,
        accumulate=64,
        checkpoint={"every_steps": 1000},
        method={"name": "simclr"},
    )
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "pscl_hpc.cli", "pretrain", "--config", str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        eventually((run / "metrics.jsonl").exists)
        # As terminals, `timeout` and Slurm do it: to the reading processes too.
        os.killpg(process.pid, number)
        error = process.communicate(timeout=PATIENCE_S)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    (step,) = CheckpointStore(run / "checkpoints").steps()
    assert error.startswith(f"stopped: {reason}; ")
    assert f"step {step}" in error
    # The configuration names the folder.
    assert "run=" not in error
    assert error.count("\n") == 1
    record = RunFolder.load(run).record
    assert (record["status"], record["error"]) == ("stopped", reason)


def test_a_run_without_a_name_is_named_to_resume_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = small_config(archive, tmp_path).model_copy(update={"run": ""})
    request_stop("preempted")
    try:
        with pytest.raises(StopRequested) as stopped:
            pretrain(config)
    finally:
        clear_stop()
    (run,) = Path("runs").iterdir()
    assert f"run={run}" in stopped.value.hint


def test_stopped_after_every_step_equals_uninterrupted(archive: Path, tmp_path: Path) -> None:
    whole = pretrain(small_config(archive, tmp_path / "whole"))
    config = small_config(archive, tmp_path / "stopped")
    for step in range(1, 6):
        request_stop("preempted")
        try:
            with pytest.raises(StopRequested, match="preempted"):
                pretrain(config)
        finally:
            clear_stop()
        assert RunFolder.load(config.run).checkpoints.steps()[-1] == step
    stopped = pretrain(config)
    assert stopped.done
    a, b = whole.checkpoints.load_latest(), stopped.checkpoints.load_latest()
    assert a is not None
    assert b is not None
    for key in ("step", "smooth_loss", "best_step", "best_score"):
        assert a[key] == b[key]
    for key in a["method"]:
        assert torch.equal(a["method"][key], b["method"][key]), key
    assert [attempt["first_step"] for attempt in stopped.attempts] == [0, 1, 2, 3, 4, 5]


def test_checkpoints_by_the_clock_are_never_the_best(archive: Path, tmp_path: Path) -> None:
    config = small_config(
        archive, tmp_path / "run", checkpoint={"every_steps": 6, "every_minutes": 1e-9, "keep": 10}
    )
    folder = pretrain(config)
    assert folder.checkpoints.steps() == [1, 2, 3, 4, 5, 6]
    best = folder.checkpoints.load_best()
    assert best is not None
    assert best["step"] == 6


def test_the_best_checkpoint_is_that_of_the_lowest_smoothed_loss(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [3.0, 0.0, 2.0, 2.9, 9.0, 9.0]
    real = Simclr.forward

    def made_up(method: Simclr, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        loss = real(method, views, draws, measure).loss
        return MethodOutput(loss - loss.detach() + losses[draws.number])

    monkeypatch.setattr(Simclr, "forward", made_up)
    smooth = losses[:1]
    for loss in losses[1:]:
        smooth.append(0.98 * smooth[-1] + 0.02 * loss)
    assert min(smooth) == smooth[3], "neither the lowest loss nor the last"
    folder = pretrain(
        small_config(
            archive, tmp_path / "run", method={"name": "simclr"}, checkpoint={"every_steps": 1, "keep": 3}
        )
    )
    best, last = folder.checkpoints.load_best(), folder.checkpoints.load_latest()
    assert best is not None
    assert last is not None
    assert (best["step"], last["step"], last["best_step"]) == (4, 6, 4)
    assert best["best_score"] == last["best_score"] == pytest.approx(-smooth[3], rel=1e-6)
    fourth = torch.load(folder.path / "checkpoints/step-00000004.pt", weights_only=True)
    assert all(torch.equal(value, fourth["method"][key]) for key, value in best["method"].items())

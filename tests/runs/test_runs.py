"""Run folders, checkpoints and metrics on real files."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.config import PretrainConfig
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.runs import CheckpointStore, MetricsLog, RunFolder, read_metrics, write_text
from pscl_hpc.runs.checkpoint import serialise
from tests.helpers import small_config

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return small_config(tmp_path / "a.h5", tmp_path / "run")


def test_status_follows_what_happens(config: PretrainConfig) -> None:
    with pytest.raises(JobError), RunFolder.start(config, CPU):
        raise JobError("the loss is not finite at step 3")
    folder = RunFolder.load(config.run)
    assert (folder.record["status"], folder.record["error"]) == ("failed", "the loss is not finite at step 3")
    with pytest.raises(KeyboardInterrupt), RunFolder.start(config, CPU):
        raise KeyboardInterrupt
    assert RunFolder.load(config.run).record["status"] == "stopped"
    with RunFolder.start(config, CPU) as folder:
        assert RunFolder.load(config.run).record["status"] == "running"
    assert RunFolder.load(config.run).done
    assert len(folder.record["attempts"]) == 3


def test_new_folders_get_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = small_config(tmp_path / "a.h5", Path("")).model_copy(update={"run": ""})
    first, second = RunFolder.start(config, CPU), RunFolder.start(config, CPU)
    assert first.path != second.path
    assert first.path.parent == Path("runs")


def test_foreign_content_is_never_touched(config: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        RunFolder.start(config, CPU)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder.start(config.model_copy(update={"run": str(tmp_path / "file")}), CPU)


def _hold(config: PretrainConfig, ready: multiprocessing.Event, leave: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    with RunFolder.start(config, CPU):
        ready.set()  # type: ignore[attr-defined]
        leave.wait(60)  # type: ignore[attr-defined]


def test_two_processes_cannot_write_one_run(config: PretrainConfig) -> None:
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(config, ready, leave))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(UserError, match=rf"is being written by process {process.pid}"):
            RunFolder.start(config, CPU)
    finally:
        leave.set()
        process.join()


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_record_is_named(config: PretrainConfig, content: str) -> None:
    with RunFolder.start(config, CPU):
        pass
    (Path(config.run) / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        RunFolder.load(config.run)


def test_loading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        RunFolder.load(tmp_path / "none")
    with pytest.raises(UserError, match="is no run folder"):
        RunFolder.load(tmp_path)


def test_checkpoints_keep_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep=2)
    assert store.load_latest() is None
    for step in (10, 20, 30):
        store.save(step, {"weight": torch.full((3,), float(step))})
    store.save_best(20, {"weight": torch.zeros(1)})
    assert store.steps() == [20, 30]
    latest, best = store.load_latest(), store.load_best()
    assert latest is not None
    assert best is not None
    assert latest["step"] == 30
    assert latest["weight"].tolist() == [30, 30, 30]
    assert best["step"] == 20
    assert sorted(p.suffix for p in store.folder.iterdir()) == [".pt"] * 3 + [".sha256"] * 3


def test_a_torn_checkpoint_falls_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(1, {"x": torch.ones(2)})
    newest = store.save(2, {"x": torch.ones(2)})
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="damaged"):
        latest = store.load_latest()
    assert latest is not None
    assert latest["step"] == 1


class Trap:
    """Makes a file when it is unpickled by what trusts its input."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("load", [CheckpointStore.load_latest, CheckpointStore.load_best])
def test_code_in_a_checkpoint_is_never_run(
    tmp_path: Path, load: Callable[[CheckpointStore], dict[str, Any] | None]
) -> None:
    store, sprung = CheckpointStore(tmp_path / "c"), tmp_path / "sprung"
    data = serialise(1, {"x": Trap(sprung)})
    store.write(1, data)
    store.write_best(1, data)
    torch.load(io.BytesIO(data), weights_only=False)
    assert sprung.exists(), "the trap works"
    sprung.unlink()
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load(store)
    assert not sprung.exists()


def test_replacing_a_file_leaves_old_or_new(tmp_path: Path) -> None:
    from pscl_hpc.runs import replace_file

    target = tmp_path / "file"
    write_text(target, "old")

    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(target, fails)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_metrics_rewind_and_have_no_nan(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        log.write(step, {"loss": float("nan") if step == 2 else 0.5, "deep": {"x": [float("inf")]}})
    with log.path.open("a") as handle:
        handle.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(log.path)] == [1, 2, 3]
    assert json.loads(log.path.read_text().splitlines()[1])["loss"] is None
    log.rewind(2)
    assert [line["step"] for line in read_metrics(log.path)] == [1, 2]
    assert len(log.path.read_text().splitlines()) == 2


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = MetricsLog(tmp_path / "m.jsonl", tensorboard=tmp_path / "board")
    log.write(1, {"loss": 0.5})
    log.close()
    assert list((tmp_path / "board").glob("events*"))

"""Run folders, checkpoints and metrics on real files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import pickle
import resource
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.config import load_config
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.runs import CheckpointStore, MetricsLog, RunFolder, read_metrics
from pscl_hpc.runs.attempts import Attempt
from pscl_hpc.runs.lock import LOCK_FILE
from pscl_hpc.runs.trackers import TensorBoard, Trackers
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
    with pytest.raises(UserError, match=r"run: .*run="):
        RunFolder.start(config, CPU)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: "):
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
        with pytest.raises(UserError, match=rf"process {process.pid}\b"):
            RunFolder.start(config, CPU)
    finally:
        leave.set()
        process.join()


def test_a_look_at_the_lock_does_not_refuse_the_run(config: PretrainConfig) -> None:
    RunFolder.reserve(config)
    with (Path(config.run) / LOCK_FILE).open("a+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as `jobs status` does
        threading.Timer(0.1, looking.close).start()
        with RunFolder.start(config, CPU):
            pass
    assert RunFolder.load(config.run).done


def _race(config: PretrainConfig, start: Any, pipe: Connection) -> None:
    """Start runs in many folders at once with others; send which this process got, and under which seed."""
    got = []
    for number in range(40):
        start.wait(60)
        run = Path(config.run) / str(number)
        with contextlib.suppress(UserError):
            folder = RunFolder.start(config.model_copy(update={"run": str(run)}), CPU)
            got.append((number, load_config(run / "config.yaml").seed == config.seed))
            start.wait(60)
            got[-1] = (number, got[-1][1] and load_config(run / "config.yaml").seed == config.seed)
            folder._release()
            continue
        start.wait(60)
    pipe.send(got)


def test_of_two_that_make_a_folder_at_once_one_gets_it(config: PretrainConfig) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    pipes = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=_race, args=(config.model_copy(update={"seed": seed}), start, theirs))
        for seed, (_, theirs) in enumerate(pipes)
    ]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()
    got = [entry for ours, _ in pipes for entry in ours.recv()]
    for process in processes:
        process.join()
    assert sorted(number for number, _ in got) == list(range(40)), "each folder belongs to one"
    assert all(own for _, own in got), "nobody works under another's configuration"


@pytest.mark.parametrize("run", ["file/x", "/proc/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_made_is_wrong_input(
    config: PretrainConfig, tmp_path: Path, run: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"{run}.*run="):
        RunFolder.start(config.model_copy(update={"run": str(tmp_path / run)}), CPU)


def test_runs_may_be_a_file(config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("")
    with pytest.raises(UserError, match=r"^runs: "):
        RunFolder.start(config.model_copy(update={"run": ""}), CPU)


def test_how_an_attempt_ended_is_recorded(config: PretrainConfig) -> None:
    with pytest.raises(JobError), RunFolder.start(config, CPU):
        raise JobError("the loss is not finite at step 3")
    lost = RunFolder.start(config, CPU)
    lost._release()  # as when it is killed
    with RunFolder.start(config, CPU):
        pass
    ends = [attempt.get("ended") for attempt in RunFolder.load(config.run).attempts]
    assert ends[0] == "the loss is not finite at step 3"
    assert ends[1].startswith("unknown")
    assert ends[2] is None


def _full(config: PretrainConfig, pipe: Connection) -> None:
    """Sends the errors of a run on a disk that becomes full."""
    said = []
    folder = RunFolder.start(config, CPU)
    # Like a full disk: no file may grow beyond this size.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    for write in (
        lambda: folder.update(text="x" * 500),
        lambda: Attempt.begin(folder.path, {"text": "x" * 500}),
        lambda: folder.__exit__(None, None, None),
    ):
        try:
            write()
        except JobError as error:
            said.append(str(error))
    pipe.send(said)


def test_a_full_disk_is_a_short_error_with_the_file(config: PretrainConfig) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_full, args=(config, theirs))
    process.start()
    update, attempt, done = ours.recv()
    process.join()
    for text, name in ((update, "run.json"), (attempt, "attempts"), (done, "run.json")):
        assert f"{Path(config.run) / name}: " in text
        assert "File too large" in text
        assert "\n" not in text
    assert not RunFolder.load(config.run).done


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_record_is_named(config: PretrainConfig, content: str) -> None:
    with RunFolder.start(config, CPU):
        pass
    (Path(config.run) / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        RunFolder.load(config.run)


def test_loading_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: "):
        RunFolder.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"config\.yaml"):
        RunFolder.load(tmp_path)


def test_the_run_inside_a_folder_is_named(config: PretrainConfig) -> None:
    run = RunFolder.reserve(config).path
    (run / "run.json").write_text("{}")
    with pytest.raises(UserError, match=rf"did you mean {run}\?"):
        RunFolder.load(run.parent)


def test_checkpoints_keep_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep=2)
    assert store.load_latest() is None
    for step in (10, 20, 30):
        store.save(step, {"weight": torch.full((3,), float(step))})
    store.save(20, {"weight": torch.zeros(1)}, newest=False, best=True)
    assert store.steps() == [20, 30]
    latest, best = store.load_latest(), store.load_best()
    assert latest is not None
    assert best is not None
    assert latest["step"] == 30
    assert latest["weight"].tolist() == [30, 30, 30]
    assert best["step"] == 20
    assert sorted(p.suffix for p in store.folder.iterdir()) == [".pt"] * 3 + [".sha256"] * 3


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_torn_checkpoint_falls_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(1, {"x": torch.ones(2)})
    newest = store.save(2, {"x": torch.ones(2)})
    damage(newest)
    latest = store.load_latest()
    assert latest is not None
    assert latest["step"] == 1
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {newest}: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("keep", [1, 2])
def test_new_checkpoints_replace_damaged_ones(tmp_path: Path, keep: int) -> None:
    store = CheckpointStore(tmp_path / "c", keep=3)
    for step in (400, 550, 560):
        store.save(step, {"x": torch.ones(2)})
    for step in (550, 560):
        damage(store.folder / f"step-{step:08d}.pt")
    store.keep = keep
    latest = store.load_latest()
    assert latest is not None
    assert latest["step"] == 400
    store.save(450, {"x": torch.ones(2)})
    assert store.steps() == [400, 450][-keep:]
    latest = store.load_latest()
    assert latest is not None
    assert latest["step"] == 450
    assert sorted(p.suffix for p in store.folder.iterdir()) == [".pt"] * keep + [".sha256"] * keep


@pytest.mark.parametrize("how", ["torn", "without checksum"])
def test_without_an_intact_checkpoint_the_run_does_not_start_again(tmp_path: Path, how: str) -> None:
    store = CheckpointStore(tmp_path / "c")
    for step in (1, 2):
        path = store.save(step, {"x": torch.ones(2)})
        if how == "torn":
            damage(path)
        else:
            path.with_suffix(".sha256").unlink()
    with pytest.raises(
        UserError,
        match=rf"step-00000002\.pt: .* {store.folder} ",
    ):
        store.load_latest()
    assert store.steps() == [1, 2]


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(1, {"x": torch.ones(2)})
    newest = store.save(2, {"x": torch.ones(2)})
    newest.unlink()
    newest.mkdir()  # reading it is an OSError, for root too
    with pytest.raises(JobError, match=r"step-00000002\.pt: .*Is a directory"):
        store.load_latest()


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
    file = store.save(1, {"x": Trap(sprung)}, best=True)
    torch.load(file, weights_only=False)
    assert sprung.exists(), "the trap works"
    sprung.unlink()
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load(store)
    assert not sprung.exists()


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
    trackers = Trackers({"tensorboard": TensorBoard(tmp_path)})
    log = MetricsLog(tmp_path / "m.jsonl", trackers=trackers)
    log.write(1, {"loss": 0.5})
    log.close()
    assert list((tmp_path / "tensorboard").glob("events*"))

"""Checkpoints on a disk of the node, copied to the run folder behind the training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pscl_hpc.config import to_yaml
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.models import load_trunk
from pscl_hpc.pretraining import pretrain
from pscl_hpc.runs import BackgroundWriter, CheckpointStore
from pscl_hpc.runs.local_copy import CopiedStore, LocalFolder
from tests.helpers import PATIENCE_S, small_config
from tests.pretraining.products import values

KILLED_BEFORE_THE_COPY = """
import os, sys, time
from pscl_hpc.cli.main import main
from pscl_hpc.runs import CheckpointStore
write = CheckpointStore.write
def killed(self, step, *arguments, **options):
    if self.folder.name == "checkpoints" and step == 4:  # in the run folder
        os.kill(os.getpid(), 9)
    return write(self, step, *arguments, **options)
CheckpointStore.write = killed
sys.exit(main(sys.argv[1:]))
"""


def store(run: Path, local: Path, attempt: int = 2, *, keep: int = 2) -> CopiedStore:
    place = LocalFolder.of(str(local), run, "now", attempt)
    return CopiedStore(run / "checkpoints", keep=keep, guard=None, local=place)


def state(value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.full((3,), value)}


def test_a_kill_between_the_write_and_the_copy(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt on the node goes on from the local checkpoint, and the numbers are those of a whole run."""
    pretrain(small_config(archive, tmp_path / "whole"))
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    config = small_config(
        archive,
        tmp_path / "run",
        checkpoint={"every_steps": 2, "local": "$NODE_DISK"},
        log={"every_steps": 1},
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = [
        sys.executable,
        "-c",
        KILLED_BEFORE_THE_COPY,
        "pretrain",
        "--config",
        str(tmp_path / "run.yaml"),
    ]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=PATIENCE_S)
    assert killed.returncode == -signal.SIGKILL
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [2]
    folder = pretrain(config)
    assert folder.attempts[-1]["first_step"] == 4
    assert values(tmp_path / "run") == values(tmp_path / "whole")
    ours, theirs = (load_trunk(tmp_path / name).state_dict() for name in ("run", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert folder.checkpoints.steps() == [4, 6]
    assert not list((tmp_path / "disk").glob("*/*")), "the local folder is left behind"


def test_the_newest_of_both_is_loaded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, local = tmp_path / "run", tmp_path / "disk"
    shared = CheckpointStore(run / "checkpoints")
    shared.save(4, state(4.0))
    before = CheckpointStore(LocalFolder.of(str(local), run, "now", 1).path)
    before.save(3, state(3.0))
    loaded = store(run, local).load_latest()
    assert loaded is not None
    assert loaded["step"] == 4
    before.save(6, state(6.0), best=True)
    other = CheckpointStore(LocalFolder.of(str(local), run, "another run", 1).path)
    other.save(9, state(9.0))
    loaded = store(run, local).load_latest()
    assert loaded is not None
    assert loaded["step"] == 6
    assert shared.steps() == [4, 6], "copied, so that another node can resume"
    best = shared.load_best()
    assert best is not None
    assert best["step"] == 6
    assert other.steps() == [9]
    assert not before.folder.exists()
    # Of the attempt before only: a later one may have gone on elsewhere.
    CheckpointStore(LocalFolder.of(str(local), run, "now", 1).path).save(8, state(8.0))
    loaded = store(run, local, 3).load_latest()
    assert loaded is not None
    assert loaded["step"] == 6
    # A damaged one is named, and the run folder used.
    before = CheckpointStore(LocalFolder.of(str(local), run, "now", 3).path)
    path = before.save(10, state(1.0))
    path.write_bytes(path.read_bytes()[:-1])
    capfd.readouterr()
    loaded = store(run, local, 4).load_latest()
    assert loaded is not None
    assert loaded["step"] == 6
    assert str(path) in capfd.readouterr().err


def test_a_slow_file_system_delays_nothing_and_gets_the_newest_and_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, release, begun = tmp_path / "run", threading.Event(), threading.Event()
    write = CheckpointStore._write
    written = []

    def slow(self: CheckpointStore, step: int, path: Path, data: memoryview) -> None:
        if self.folder == run / "checkpoints":
            begun.set()
            assert release.wait(PATIENCE_S)
            written.append((step, path.name))
        write(self, step, path, data)

    monkeypatch.setattr(CheckpointStore, "_write", slow)
    copied = store(run, tmp_path / "disk")
    writer = BackgroundWriter(copied)
    for step in range(1, 6):
        writer.save(step, state(step), best=step == 3)
        if step == 1:
            assert begun.wait(PATIENCE_S)
    writer._wait()
    assert copied.local.steps() == [5]
    assert written == []
    release.set()
    writer.flush()
    assert written == [
        (1, "step-00000001.pt"),
        (3, "best.pt"),
        (5, "step-00000005.pt"),
    ]
    writer.close()
    assert not list((tmp_path / "disk").glob("*/*"))


def test_a_local_disk_that_fails_is_named_once_and_not_needed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").write_text("a file")
    copied = store(tmp_path / "run", tmp_path / "disk")
    writer = BackgroundWriter(copied)
    for step in (1, 2):
        writer.save(step, state(step))
    writer.flush()
    writer.close()
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [1, 2]
    assert capfd.readouterr().err.count(str(tmp_path / "disk")) == 1


def test_a_copy_that_fails_is_an_error_and_the_local_one_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").write_text("a file")
    copied = store(run, tmp_path / "disk")
    writer = BackgroundWriter(copied)
    writer.save(1, state(1))
    with pytest.raises(JobError, match="checkpoints"):
        writer.flush()
    writer.close()
    assert copied.local.steps() == [1]


@pytest.mark.parametrize("setting", ["disk", "$NO_SUCH_VARIABLE/x"])
def test_a_place_that_cannot_be_meant_is_refused(archive: Path, tmp_path: Path, setting: str) -> None:
    config = small_config(archive, tmp_path / "run", checkpoint={"local": setting})
    with pytest.raises(UserError, match=r"checkpoint\.local"):
        pretrain(config)

"""Checkpoints written by another thread, on disks that are full, slow or faulty."""

from __future__ import annotations

import multiprocessing
import resource
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.errors import JobError
from pscl_hpc.runs import BackgroundWriter, CheckpointStore, MetricsLog
from pscl_hpc.runs import checkpoint as checkpoint_module

FORK = multiprocessing.get_context("fork")


def test_a_state_is_taken_when_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    write = checkpoint_module._write_verified

    def late(*arguments: Any) -> None:
        assert release.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint_module, "_write_verified", late)
    store = CheckpointStore(tmp_path)
    writer = BackgroundWriter(store)
    weight = torch.ones(3)
    writer.save(1, {"deep": {"weight": weight, "list": [weight, (2.0, weight)]}}, best=True)
    weight.zero_()
    assert store.steps() == [], "the training continues before it is written"
    release.set()
    writer.flush()
    writer.close()
    for state in (store.load_latest(), store.load_best()):
        assert state is not None
        assert state["step"] == 1
        assert state["deep"]["weight"].tolist() == [1, 1, 1]
        assert state["deep"]["list"][1][1].tolist() == [1, 1, 1]


def test_the_best_state_alone(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    writer = BackgroundWriter(store)
    writer.save(3, {"x": torch.ones(2)}, newest=False, best=True)
    writer.close()
    assert store.steps() == []
    assert writer.saved == -1, "there is nothing to resume from"
    best = store.load_best()
    assert best is not None
    assert best["step"] == 3


def _fill_the_disk(folder: Path, pipe: Connection) -> None:
    store = CheckpointStore(folder / "checkpoints")
    writer = BackgroundWriter(store)
    log = MetricsLog(folder / "metrics.jsonl")
    writer.save(1, {"x": torch.ones(10)})
    writer.flush()
    # Like a full disk: no file may grow beyond this size.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    said = []
    writer.save(2, {"x": torch.ones(10_000)})
    try:
        writer.flush()
    except JobError as error:
        said.append(str(error))
    try:
        log.write(2, {"text": "x" * 5000})
    except JobError as error:
        said.append(str(error))
    pipe.send(said)


def test_a_full_disk_is_a_short_error_and_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_fill_the_disk, args=(tmp_path, theirs))
    process.start()
    checkpoint, metrics = ours.recv()
    process.join()
    for word in ("step-00000002.pt", "File too large", "step 1"):
        assert word in checkpoint
    for word in ("metrics.jsonl", "step 2", "File too large"):
        assert word in metrics
    store = CheckpointStore(tmp_path / "checkpoints")
    state = store.load_latest()
    assert state is not None
    assert state["step"] == 1
    assert not list(store.folder.glob(".*")), "nothing half-written is left"


def test_what_does_not_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"x": torch.ones(3)})
    fsync = checkpoint_module.os.fsync

    def corrupting(descriptor: int) -> None:
        fsync(descriptor)
        path = next(tmp_path.glob(".step-00000002.pt*"), None)
        if path is not None:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(bytes(data))

    monkeypatch.setattr(checkpoint_module.os, "fsync", corrupting)
    with pytest.raises(JobError, match=r"step-00000002\.pt"):
        store.save(2, {"x": torch.ones(3)})
    monkeypatch.undo()
    state = store.load_latest()
    assert state is not None
    assert state["step"] == 1


def test_an_error_surfaces_at_the_next_save(tmp_path: Path) -> None:
    def refuse() -> None:
        raise JobError("attempt 2")

    writer = BackgroundWriter(CheckpointStore(tmp_path, guard=refuse))
    writer.save(1, {})
    with pytest.raises(JobError, match="attempt 2"):
        writer.save(2, {})
    writer.flush()
    writer.close()
    assert not list(tmp_path.iterdir())

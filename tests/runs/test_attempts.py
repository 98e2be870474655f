"""Attempts at one run in real processes: the newest writes, the others end."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.attempts import Attempt, newest_attempt
from tests.helpers import small_config

CPU = torch.device("cpu")
AGAIN = {"SLURM_RESTART_COUNT": "1"}
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return small_config(tmp_path / "a.h5", tmp_path / "run")


def _orphan(config: PretrainConfig, environment: dict[str, str], pipe: Connection) -> None:
    """Works in the run until told that another attempt has begun; sends the error of each kind of write."""
    os.environ.update(environment)
    said = []
    with RunFolder.start(config, CPU) as folder:
        log = folder.metrics_log()
        log.write(1, {"loss": 1.0})
        folder.checkpoints.save(1, {"x": torch.zeros(1)})
        pipe.send("working")
        pipe.recv()
        writes = (
            lambda: log.write(2, {"loss": 2.0}),
            lambda: log.rewind(0),
            lambda: folder.checkpoints.save(2, {"x": torch.ones(1)}),
            lambda: folder.checkpoints.save(2, {"x": torch.ones(1)}, newest=False, best=True),
            lambda: folder.update(status="nonsense"),
            folder.check_owner,
        )
        for write in writes:
            try:
                write()
                said.append("")
            except JobError as error:
                said.append(str(error))
        pipe.send(said)
        raise SystemExit


@contextmanager
def _working(config: PretrainConfig, environment: dict[str, str]) -> Iterator[tuple[BaseProcess, Connection]]:
    """Another process that works in the run, and a pipe to it."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_orphan, args=(config, environment, theirs))
    process.start()
    try:
        assert ours.recv() == "working"
        yield process, ours
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"SLURM_JOB_ID": "7", "PSCL_NODE": "n1"}, {**AGAIN, "SLURM_JOB_ID": "7", "PSCL_NODE": "n2"}),
        ({"SLURM_JOB_ID": "7", "PSCL_NODE": "n1"}, {**AGAIN, "SLURM_JOB_ID": "7", "PSCL_NODE": "n1"}),
        ({"SLURM_JOB_ID": "7", "PSCL_NODE": "n1"}, {"SLURM_JOB_ID": "8", "PSCL_NODE": "n2"}),
    ],
    ids=["requeued on another node", "requeued on the same node", "another job on another node"],
)
def test_an_orphan_writes_nothing_once_another_attempt_began(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, first: dict[str, str], second: dict[str, str]
) -> None:
    with _working(config, first) as (orphan, pipe):
        for key, value in second.items():
            monkeypatch.setenv(key, value)
        with RunFolder.start(config, CPU) as folder:
            pipe.send("go on")
            said = pipe.recv()
            orphan.join()
            for text in said:
                assert "attempt 2 " in text
                assert "attempt 1 " in text
            assert [line["step"] for line in folder.metrics()] == [1]
            assert folder.checkpoints.steps() == [1]
            assert RunFolder.load(config.run).record["status"] == "running", (
                "the orphan's end is not recorded"
            )
        assert RunFolder.load(config.run).done


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"PSCL_NODE": "n1"}, {"PSCL_NODE": "n2"}),
        ({"SLURM_JOB_ID": "7", "PSCL_NODE": "n1"}, {"SLURM_JOB_ID": "7", "PSCL_NODE": "n1"}),
        ({"SLURM_JOB_ID": "7", "PSCL_NODE": "n1"}, {"SLURM_JOB_ID": "7", "PSCL_NODE": "n2"}),
        (
            {**AGAIN, "SLURM_JOB_ID": "7", "PSCL_NODE": "n1"},
            {**AGAIN, "SLURM_JOB_ID": "7", "PSCL_NODE": "n1"},
        ),
        ({"SLURM_JOB_ID": "7", "PSCL_NODE": "n1"}, {"SLURM_JOB_ID": "8", "PSCL_NODE": "n1"}),
    ],
    ids=["without Slurm", "same start", "same start, another node", "same restart", "another job beside it"],
)
def test_a_living_process_is_not_replaced(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, first: dict[str, str], second: dict[str, str]
) -> None:
    with _working(config, first) as (holder, pipe):
        for key, value in second.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(UserError, match=rf"process {holder.pid}\b"):
            RunFolder.start(config, CPU)
        pipe.send("go on")
        assert pipe.recv() == ["", "", "", "", "", ""]


def _begin(run: Path, start: object, pipe: Connection) -> None:
    start.wait(60)  # type: ignore[attr-defined]
    pipe.send([Attempt.begin(run, {"pid": os.getpid()}).number for _ in range(20)])


def test_racing_attempts_get_different_numbers(tmp_path: Path) -> None:
    start = FORK.Event()
    pipes = [FORK.Pipe() for _ in range(4)]
    processes = [FORK.Process(target=_begin, args=(tmp_path, start, theirs)) for _, theirs in pipes]
    for process in processes:
        process.start()
    start.set()
    numbers = [number for ours, _ in pipes for number in ours.recv()]
    for process in processes:
        process.join()
    assert sorted(numbers) == list(range(1, 81))
    assert newest_attempt(tmp_path) == 80
    Attempt(tmp_path, 80).check()
    with pytest.raises(JobError, match="attempt 80"):
        Attempt(tmp_path, 79).check()


def test_keys_that_do_not_affect_results_may_change(config: PretrainConfig) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder.start(config, CPU):
        raise KeyboardInterrupt
    runtime = config.runtime.model_copy(update={"workers": 2, "collective_timeout_s": 9.0})
    with RunFolder.start(config.model_copy(update={"runtime": runtime}), CPU):
        pass
    assert RunFolder.load(config.run).done

"""No job starts while something else works on the run: by hand, on another machine, or for a Slurm that is silent."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pscl_hpc.cli.main import main
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.launch import schedulers
from pscl_hpc.launch.control import cancel, follow_log, requeue
from pscl_hpc.launch.records import latest_job
from pscl_hpc.launch.schedulers import wait_for_end
from pscl_hpc.launch.stage_job import StageJob
from pscl_hpc.launch.status import run_status
from pscl_hpc.launch.submission import submit
from pscl_hpc.runs import RunFolder

from .conftest import MakeConfig, write_job


@pytest.mark.usefixtures("place")
def test_no_job_starts_while_a_process_works_on_the_run(make_config: MakeConfig) -> None:
    config = make_config(run="runs/a")
    with RunFolder.start(config, torch.device("cpu"), ["n1", "n1"]) as folder:
        record = write_job(folder.path, cluster="local", host=socket.gethostname(), tasks=4)
        before = (folder.path / "run.json").read_bytes()
        for ask in (lambda: submit(config, cluster="local"), lambda: requeue(folder.path)):
            with pytest.raises(UserError, match=rf"^runs/a: process {os.getpid()} on "):
                ask()
        assert (folder.path / "run.json").read_bytes() == before
        found = run_status(folder.path)
        assert (found.state, found.job, found.ranks) == ("running", "", 2)
    assert (run_status(folder.path).job, run_status(folder.path).ranks) == (record.job, 2)


@pytest.mark.usefixtures("place")
def test_a_failed_start_does_not_change_the_record_of_a_locked_run(make_config: MakeConfig) -> None:
    with RunFolder.start(make_config(run="runs/a"), torch.device("cpu")) as folder:
        job = StageJob(run=str(folder.path), entry="", files="")
        folder.update(status="queued")
        job._record("the archive is gone")
        assert RunFolder.load(folder.path).record["status"] == "queued"
    folder.update(status="queued")
    job._record("the archive is gone")
    assert RunFolder.load(folder.path).record["status"] == "failed"


@pytest.mark.usefixtures("place")
def test_no_job_starts_while_another_machine_may_work_on_the_run(make_config: MakeConfig) -> None:
    config = make_config(run="runs/a")
    folder = RunFolder.reserve(config)
    folder.update(status="running")
    write_job(folder.path, cluster="local", host="elsewhere")
    for ask in (lambda: submit(config, cluster="local"), lambda: requeue(folder.path)):
        with pytest.raises(UserError, match=r"job 5 is a process of elsewhere"):
            ask()
    with pytest.raises(UserError, match=r"job 5 is a process of elsewhere"):
        cancel(folder.path)
    (folder.path / "jobs" / "5_0_log.out").write_text("rank 0 of 1 on elsewhere: job 5\n")
    assert "".join(follow_log(folder.path, follow=True)).startswith("rank 0"), "and does not wait for ever"
    assert RunFolder.load(folder.path).record["status"] == "running"


@pytest.fixture
def silent_slurm(
    place: Path, slurm_commands: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """A run with a Slurm job. Its squeue gives one answer after the other: a state, ``gone`` or ``silence``."""
    monkeypatch.setattr(schedulers, "SILENCE_S", 60.0)
    monkeypatch.setattr("pscl_hpc.launch.control.time.sleep", lambda seconds: None)

    def write(name: str, text: str) -> None:
        (slurm_commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (slurm_commands / name).chmod(0o755)

    def answers(words: str) -> Path:
        queue = slurm_commands / "answers"
        queue.write_text("".join(word + "\n" for word in words.split()))
        # The last answer is repeated.
        write(
            "squeue",
            f"word=$(head -n 1 '{queue}'); [ $(wc -l < '{queue}') = 1 ] || sed -i 1d '{queue}'\n"
            "case $word in\nsilence) echo 'Unable to contact slurm controller' >&2; exit 1 ;;\n"
            "gone) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1 ;;\n"
            'esac\necho "5|$word|None|n1|0|0|"',
        )
        write("sacct", "exit 1")
        write("scancel", f"echo \"$@\" >> '{slurm_commands}/told'")
        folder = RunFolder.reserve(make_config(run="runs/a"))
        folder.update(status="running")
        write_job(folder.path)
        (folder.path / "jobs" / "5_0_log.out").write_text("rank 0 of 1 on n1: job 5\n")
        return folder.path

    return answers


def test_an_unanswered_question_is_not_the_end_of_a_job(
    silent_slurm: Callable[[str], Path], slurm_commands: Path
) -> None:
    run = silent_slurm("RUNNING silence RUNNING silence silence COMPLETED")
    assert "".join(follow_log(run, follow=True)).startswith("rank 0")
    assert (slurm_commands / "answers").read_text() == "COMPLETED\n"
    job = latest_job(silent_slurm("silence RUNNING silence COMPLETED"))
    assert job is not None
    assert wait_for_end(job, -1.0) is False, "it runs when the time is over, which silence does not say"
    assert wait_for_end(job, 60.0) is True


def test_a_job_is_cancelled_although_slurm_is_silent_at_times(
    silent_slurm: Callable[[str], Path], slurm_commands: Path
) -> None:
    run = silent_slurm("silence RUNNING silence silence RUNNING silence CANCELLED")
    assert cancel(run).state == "stopped"
    assert (slurm_commands / "told").read_text() == "--signal=INT 5\n", "asked, and not killed"
    assert (slurm_commands / "answers").read_text() == "CANCELLED\n", "and waited for"


def test_no_second_job_starts_while_slurm_is_silent(
    silent_slurm: Callable[[str], Path], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = silent_slurm("silence")
    monkeypatch.setattr(schedulers, "SILENCE_S", 0.0)
    assert run_status(run).state == "running"
    for ask in (
        lambda: submit(make_config(run="runs/a"), cluster="local"),
        lambda: requeue(run),
        lambda: cancel(run),
        lambda: list(follow_log(run, follow=True)),
    ):
        with pytest.raises(JobError, match="job 5"):
            ask()
    assert RunFolder.load(run).record["status"] == "running"


def test_a_job_unknown_to_slurm_has_ended(silent_slurm: Callable[[str], Path]) -> None:
    found = run_status(silent_slurm("gone"))
    assert (found.state, "neither squeue nor sacct knows it" in found.detail) == ("lost", True)


def test_a_failure_while_stopping_is_reported(
    silent_slurm: Callable[[str], Path], slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = silent_slurm("RUNNING RUNNING FAILED")
    # The record of a run whose checkpoint could not be written.
    failed = json.dumps({**RunFolder.load(run).record, "status": "failed", "error": "the disk is full"})
    (slurm_commands / "failed.json").write_text(failed)
    (slurm_commands / "scancel").write_text(f"#!/bin/sh\ncp '{slurm_commands}/failed.json' {run}/run.json\n")
    assert main(["jobs", "cancel", str(run)]) == 0
    assert "job 5: failed at step 0 of 20 (the disk is full)" in capsys.readouterr().out

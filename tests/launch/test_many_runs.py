"""The state of many runs, and of runs whose attempts died, with simulated Slurm commands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pscl_hpc.cli.main import main
from pscl_hpc.launch.ends import EXIT_FULL, REFUSED, Failure, add_failure, write_end
from pscl_hpc.launch.status import list_statuses, run_status
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.provenance import START

from .conftest import MakeConfig, write_job

pytestmark = pytest.mark.usefixtures("place")
Answer = Callable[[str, str], None]


@pytest.fixture
def answer(slurm_commands: Path) -> Answer:
    """Sets what squeue and sacct answer; they note each call."""

    def write(queue: str, accounting: str) -> None:
        for name, text in (("squeue", queue), ("sacct", accounting)):
            (slurm_commands / f"{name}.txt").write_text(text)
            path = slurm_commands / name
            path.write_text(
                f"#!/bin/sh\necho {name} \"$@\" >> '{slurm_commands}/calls'\ncat '{slurm_commands}/{name}.txt'\n"
            )
            path.chmod(0o755)

    return write


@pytest.fixture
def running(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A run that the first start of job 5 worked on until it was killed."""

    def make(run: str = "runs/a", status: str = "running", error: str = "") -> Path:
        monkeypatch.setenv(START, "5.0")
        with RunFolder.start(make_config(run=run), torch.device("cpu")) as folder:
            log = folder.metrics_log()
            for step in range(1, 6):
                log.write(step, {"loss": 2.0, "images_per_second": 8.0})
            folder.checkpoints.save(5, {})
        RunFolder.load(run).update(status=status, error=error)
        write_job(Path(run))
        return Path(run)

    return make


def test_slurm_is_asked_once_about_all_runs(
    make_config: MakeConfig, answer: Answer, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        folder = RunFolder.reserve(make_config(run=f"runs/{number}"))
        folder.update(status="queued", kind="pretrain", steps=20)
        write_job(folder.path, job=str(100 + number))
    answer(
        "".join(f"{100 + number}|PENDING|Priority||0|0|\n" for number in range(10)),
        "110|TIMEOUT|0:0|n1\n111|CANCELLED by 0|0:0|n2\n",
    )
    assert main(["jobs", "list", "--json"]) == 0
    found = {each["run"]: each for each in json.loads(capsys.readouterr().out)}
    assert [found[f"runs/{number}"]["state"] for number in range(10)] == ["queued"] * 10
    assert (found["runs/3"]["detail"], found["runs/3"]["total"]) == ("PENDING Priority", 20)
    assert "TIMEOUT" in found["runs/10"]["detail"]
    calls = (slurm_commands / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["squeue", "sacct"]
    assert all(str(100 + number) in calls[0] for number in range(12))


def test_a_silent_slurm_ends_no_run_of_the_list(
    make_config: MakeConfig, answer: Answer, slurm_commands: Path
) -> None:
    RunFolder.reserve(make_config(run="runs/a")).update(status="running")
    write_job(Path("runs/a"))
    answer("", "")
    for name in ("squeue", "sacct"):
        (slurm_commands / name).write_text("#!/bin/sh\nexit 1\n")
    assert [each.state for each in list_statuses(Path("runs"))[0]] == ["running"]


def test_a_run_whose_rank_died_has_no_pace_until_it_runs_again(
    answer: Answer, running: Callable[..., Path]
) -> None:
    run = running()
    answer("5|RUNNING|None|n1|0|0|\n", "")
    found = run_status(run)
    assert (found.state, found.images_per_second) == ("running", 8.0)
    # A rank died, and the batch script has noted it.
    add_failure(run / "jobs", "5", Failure(0, 137, "5", "n1"))
    found = run_status(run)
    assert (found.state, found.images_per_second, found.eta_s) == ("starting", None, None)
    assert "a rank on n1 ended with exit code 137, killed by signal 9" in found.detail
    answer("5|PENDING|BeginTime||1|0|\n", "")
    assert run_status(run).state == "queued"
    answer("5|RUNNING|None|n1|1|0|\n", "")
    assert (run_status(run).state, run_status(run).images_per_second) == ("starting", None)


def test_a_run_that_slurm_restarted_has_no_pace_until_it_runs_again(
    answer: Answer, running: Callable[..., Path]
) -> None:
    run = running()
    answer("5|RUNNING|None|n1|1|0|\n", "")
    found = run_status(run)
    assert (found.state, found.images_per_second) == ("starting", None)
    assert "restarting" in found.detail


def test_a_run_that_writes_no_more_lines_has_no_pace(
    answer: Answer, running: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running()
    answer("5|RUNNING|None|n1|0|0|\n", "")
    later = time.time() + 3600
    monkeypatch.setattr("pscl_hpc.launch.status.time.time", lambda: later)
    found = run_status(run)
    assert (found.state, found.images_per_second, found.eta_s) == ("running", None, None)
    assert "no line in the log for 3600 s" in found.detail or "no line in the log for 3601 s" in found.detail


@pytest.mark.parametrize(
    ("status", "error", "end", "accounting", "state", "told"),
    [
        ("running", "", ("", ""), f"5|FAILED|{EXIT_FULL}:0|n1", "failed", "full or over quota"),
        ("stopped", "preempted", (REFUSED, "a.h5: archive not found"), "5|FAILED|2:0|n1", "failed", "a.h5"),
        ("queued", "", (REFUSED, "setup on n1: module load x"), "5|FAILED|2:0|n1", "failed", "module load x"),
        ("running", "", (REFUSED, "3 starts failed"), "5|FAILED|137:0|n1", "lost", "3 starts failed"),
        ("failed", "the loss is not finite", ("", ""), "5|FAILED|3:0|n1", "failed", "not finite"),
        ("stopped", "preempted", ("", ""), "5|CANCELLED by 7|0:0|n1", "stopped", "CANCELLED by 7"),
        ("running", "", ("", ""), "5|OUT_OF_MEMORY|0:125|n1", "lost", "OUT_OF_MEMORY"),
        ("running", "", ("", ""), "5|NODE_FAIL|0:0|n1", "lost", "NODE_FAIL"),
        ("queued", "", ("", ""), "5|DEADLINE|0:0|", "lost", "DEADLINE"),
        ("stopped", "cancelled", ("", ""), "5|CANCELLED by 7|0:0|n1", "stopped", "cancelled"),
    ],
)
def test_every_end_of_a_job_has_its_reason(
    answer: Answer,
    running: Callable[..., Path],
    status: str,
    error: str,
    end: tuple[str, str],
    accounting: str,
    state: str,
    told: str,
) -> None:
    run = running(status=status, error=error)
    if end[0]:
        write_end(run / "jobs", "5", 1, *end)
    answer("", accounting + "\n")
    found = run_status(run)
    assert (found.state, told in found.detail) == (state, True), found.detail
    assert found.images_per_second is None

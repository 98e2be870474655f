"""Real jobs on this machine: running, following, stopping, resuming, failing."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from submitit.local.local import Controller

from pscl_hpc.config import to_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.launch import control
from pscl_hpc.launch.control import cancel, follow_log, ranks_of_node, requeue
from pscl_hpc.launch.local import RETRIES, job_exit_code
from pscl_hpc.launch.local import control as control_job
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import job_records
from pscl_hpc.launch.schedulers import SCHEDULERS, wait_for_end
from pscl_hpc.launch.status import RunStatus, find_runs, run_status
from pscl_hpc.launch.submission import Submission, submit, submit_many
from pscl_hpc.runs import RunFolder
from tests.helpers import PATIENCE_S, eventually

from .conftest import MakeConfig

pytestmark = pytest.mark.usefixtures("place")


def finish(done: Submission) -> RunStatus:
    assert wait_for_end(done.job, PATIENCE_S)
    return run_status(done.run)


def wait_for_step(run: Path, step: int) -> RunStatus:
    eventually(lambda: run_status(run).step >= step, f"step {step} of {run}")
    return run_status(run)


def test_a_job_completes_and_its_status_is_known(make_config: MakeConfig) -> None:
    done = submit(make_config(), cluster="local")
    assert done.run.parent == Path("runs")
    text = "".join(follow_log(done.run, follow=True))
    assert "beginning after step 0" in text
    assert "the end" in text  # what goes to stderr is in the same log
    found = finish(done)
    assert (found.state, found.step, found.total, found.checkpoint) == ("done", 20, 20, 20)
    assert (found.loss, found.images_per_second) == (1.0 / 20, 100.0)
    assert (found.job, found.cluster, found.restarts) == (done.job.job, "local", 0)
    assert find_runs(Path("runs")) == [done.run]
    with pytest.raises(UserError, match="already"):
        cancel(done.run)


def test_what_the_site_deletes_first_and_the_record_of_the_communication(make_config: MakeConfig) -> None:
    profile = Profile(purge_days=30, debug_nccl=True)
    done = submit(make_config(), cluster="local", profile=profile)
    assert finish(done).state == "done"
    found = run_status(done.run)
    date = datetime.date.today() + datetime.timedelta(days=30)
    near = {str(date + datetime.timedelta(days=shift)) for shift in (-1, 0)}
    assert any(day in found.purge for day in near), found.purge
    status = json.loads((done.run / "status.json").read_text())
    assert status["purge_date"] in near
    assert status["purge_file"]
    assert (done.run / "communication").is_dir()
    assert run_status(submit(make_config(), cluster="local").run).purge == ""


def test_a_cancelled_run_keeps_its_checkpoint_and_resumes_when_submitted_again(
    make_config: MakeConfig,
) -> None:
    config = make_config("slow", run="runs/long", steps=100_000)
    done = submit(config, cluster="local")
    running = wait_for_step(done.run, 12)
    assert running.state == "running"
    assert running.eta_s is not None
    assert running.eta_s > 100
    with pytest.raises(UserError, match=f"job {done.job.job} "):
        submit(config, cluster="local")
    stopped = cancel(done.run)
    assert stopped.state == "stopped"
    assert stopped.checkpoint is not None
    assert SCHEDULERS["local"].state(done.job).phase == "ended"

    again = submit(config, cluster="local")
    wait_for_step(again.run, stopped.step + 1)
    assert f"beginning after step {stopped.checkpoint}" in "".join(follow_log(again.run, follow=False))
    assert len(job_records(again.run)) == 2
    assert cancel(again.run).restarts == 1


@pytest.mark.parametrize(
    ("name", "state", "reason"),
    [
        ("refused", "failed", "the archive is wrong; fix it"),
        ("nan", "failed", "the loss is not finite at step 3"),
        ("bug", "failed", "ZeroDivisionError: a slip of the programmer"),
        ("dies", "lost", "its job crashed or was killed"),
    ],
)
def test_a_job_that_fails_says_why(make_config: MakeConfig, name: str, state: str, reason: str) -> None:
    done = submit(make_config(name), cluster="local", profile=Profile(retries=0))
    found = finish(done)
    assert (found.state, found.restarts) == (state, 0)
    assert found.detail.startswith(reason)
    assert ("Traceback" in "".join(follow_log(done.run, follow=False))) == (name == "bug")


def test_a_preempted_job_resumes_from_its_checkpoint(make_config: MakeConfig) -> None:
    done = submit(make_config("preempted"), cluster="local")
    found = finish(done)
    assert (found.state, found.restarts) == ("done", 1)
    assert "beginning after step 15" in "".join(follow_log(done.run, follow=False))
    steps = [line["step"] for line in RunFolder.load(done.run).metrics()]
    assert steps == list(range(1, 21))


def test_a_job_with_a_crashed_rank_resumes_from_its_checkpoint(make_config: MakeConfig) -> None:
    done = submit(make_config("dies-once"), cluster="local")
    found = finish(done)
    assert (found.state, found.restarts) == ("done", 1)
    assert found.last_end == "a rank ended with exit code 137, killed by signal 9"
    assert "beginning after step 10" in "".join(follow_log(done.run, follow=False))
    assert [line["step"] for line in RunFolder.load(done.run).metrics()] == list(range(1, 21))


def test_a_job_that_always_crashes_ends_after_its_retries(make_config: MakeConfig) -> None:
    done = submit(make_config("dies"), cluster="local", profile=Profile(retries=2))
    assert (finish(done).state, run_status(done.run).restarts) == ("lost", 2)


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([0, 0], 0),
        ([3, 0], 3),
        ([143, -9], 137),
        ([-15, -9], 137),
        ([143, None], 137),
        ([143, -15], 143),
        ([-11, 3], 139),
    ],
)
def test_a_killed_rank_decides_the_exit_code(codes: list[int | None], worst: int) -> None:
    assert job_exit_code(codes) == worst


def test_wrong_input_is_not_retried(make_config: MakeConfig) -> None:
    done = submit(make_config("refused"), cluster="local")
    assert finish(done).state == "failed"
    assert "".join(follow_log(done.run, follow=False)).count("the archive is wrong; fix it") == 1


def test_a_job_that_ignores_signals_is_killed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "STOP_GRACE_S", -4.0)  # one second
    done = submit(make_config("ignores-stop", steps=100_000), cluster="local")
    wait_for_step(done.run, 6)
    found = cancel(done.run)
    assert (found.state, found.detail) == ("stopped", "cancelled")
    with RunFolder.start(make_config("ignores-stop", steps=100_000, run=str(done.run)), torch.device("cpu")):
        pass  # the killed task no longer holds the lock


def test_a_job_outlives_the_shell_and_does_not_hold_its_streams(make_config: MakeConfig, place: Path) -> None:
    (place / "c.yaml").write_text(to_yaml(make_config("slow", run="runs/long", steps=100_000)))
    script = (
        "import toy_stage\n"
        "from pscl_hpc.launch import stage_job\n"
        "stage_job.STAGES['pretrain'] = 'toy_stage:train'\n"
        "from pscl_hpc.cli.main import run\n"
        "run()\n"
    )
    command = [sys.executable, "-c", script, "submit", "pretrain", "--config", "c.yaml", "--cluster", "local"]
    # A job that kept the pipes of its shell would hold this call until the time-out.
    shell = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    out, err = shell.communicate(timeout=PATIENCE_S)
    assert shell.returncode == 0, err
    assert out.splitlines()[-1] == "runs/long"
    # What a closing terminal does to all that belongs to it.
    with pytest.raises(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGHUP)
    assert wait_for_step(Path("runs/long"), 5).state == "running"
    assert cancel(Path("runs/long")).state == "stopped"


def test_an_attached_job_saves_and_stops_when_its_submitter_closes_the_pipe(make_config: MakeConfig) -> None:
    read, write = os.pipe()
    config = make_config("slow", run="runs/long", steps=100_000)
    done = submit_many([config], cluster="local", name="study", attached=read)[0]
    os.close(read)
    wait_for_step(done.run, 12)
    assert run_status(done.run).state == "running"
    os.close(write)
    found = finish(done)
    assert (found.state, found.restarts, found.checkpoint) == ("stopped", 0, found.step)


def test_a_stop_while_tasks_start_leaves_none_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LOCAL_NTASKS", "LOCAL_TIMEOUT_S", "LOCAL_SIGNAL_DELAY_S", "STDERR_TO_STDOUT"):
        monkeypatch.setenv(f"SUBMITIT_{name}", "1")
    monkeypatch.setenv("SUBMITIT_LOCAL_WITH_SHELL", "")
    monkeypatch.setenv("SUBMITIT_LOCAL_COMMAND", "")
    monkeypatch.setenv(RETRIES, "0")
    started: list[subprocess.Popen[str]] = []

    def start(controller: Controller) -> None:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], text=True))
        os.kill(os.getpid(), signal.SIGINT)  # before the controller knows the task
        controller.tasks.append(started[-1])

    monkeypatch.setattr(Controller, "start_tasks", start)
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    }
    try:
        control_job(tmp_path, attached=False)
        assert [task.poll() is not None for task in started] == [True]
        assert "stopped on request" in capsys.readouterr().out
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for task in started:
            task.kill()
            task.wait()


def test_a_reused_process_id_is_not_mistaken_for_the_job(make_config: MakeConfig) -> None:
    done = submit(make_config(), cluster="local")
    assert finish(done).state == "done"
    other = dataclasses.replace(done.job, job=str(os.getpid()))
    assert SCHEDULERS["local"].state(other).phase == "ended"
    SCHEDULERS["local"].kill(other)  # would end this test


def test_cpus_and_gpus_reach_the_job(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    done = submit(make_config(), cluster="local", profile=Profile(cpus_per_task=3, gpus_per_node=2))
    environment = Path(f"/proc/{done.job.job}/environ").read_text().split("\0")
    assert "OMP_NUM_THREADS=3" in environment
    assert "CUDA_VISIBLE_DEVICES=4,6" in environment
    assert done.job.profile == {"cpus_per_task": 3, "gpus_per_node": 2}


def test_several_ranks_on_one_machine(make_config: MakeConfig) -> None:
    done = submit(make_config("ranks"), cluster="local", profile=Profile(tasks_per_node=2))
    assert finish(done).state == "done"
    for rank in (0, 1):
        text = "".join(follow_log(done.run, rank, follow=False))
        assert f"rank {rank} of 2 on" in text
        assert f"RANK={rank} WORLD_SIZE=2 LOCAL_RANK={rank} LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1" in text
    assert ranks_of_node(done.run, socket.gethostname()) == [0, 1]
    with pytest.raises(UserError, match=f"'n7'.*{socket.gethostname()}"):
        ranks_of_node(done.run, "n7")
    with pytest.raises(UserError, match="ranks 0 to 1"):
        follow_log(done.run, 2, follow=False).__next__()


def test_a_run_is_requeued_on_request(make_config: MakeConfig) -> None:
    done = submit(make_config("slow", run="runs/long", steps=100_000), cluster="local")
    wait_for_step(done.run, 12)
    requeue(done.run)
    found = wait_for_step(done.run, run_status(done.run).step + 5)
    assert (found.state, found.restarts, found.job) == ("running", 1, done.job.job)
    assert found.last_end.startswith("preempted")
    stopped = cancel(done.run)
    # Now it has ended: the same again as a new job.
    requeue(done.run)
    found = wait_for_step(done.run, stopped.step + 5)
    assert (found.restarts, found.last_end, len(job_records(done.run))) == (2, "cancelled", 2)
    assert cancel(done.run).state == "stopped"


@pytest.mark.parametrize("again", ["submit", "requeue"])
def test_a_new_job_does_what_follows_a_finished_run_without_repeating_it(
    make_config: MakeConfig, again: str
) -> None:
    def send() -> Submission:
        files, entry = Path("array"), "toy_stage:train_and_score"
        # Without retries: the first try fails on purpose.
        profile = Profile(retries=0)
        return submit_many(
            [config], cluster="local", files=files, name="study", entry=entry, profile=profile
        )[0]

    config = make_config(run="runs/a")
    done = send()
    assert wait_for_end(done.job, PATIENCE_S)
    assert RunFolder.load(done.run).done
    assert not (done.run / "scores").exists()
    with pytest.raises(UserError, match="this run is done"):
        submit(config, cluster="local")
    (done.run / "model").touch()
    if again == "submit":
        send()
    else:
        requeue(done.run)
    last = job_records(done.run)[-1]
    assert (last.job != done.job.job, last.entry) == (True, "toy_stage:train_and_score")
    assert wait_for_end(last, PATIENCE_S)
    assert (done.run / "scores").exists()
    folder = RunFolder.load(done.run)
    assert (folder.done, len(folder.attempts)) == (True, 1)

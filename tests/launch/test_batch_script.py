"""What the batch script does when its tasks end, with simulated Slurm commands."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pscl_hpc.launch.batch_script import REFUSED, REQUEUE, STOPPED, python_command, srun_options
from pscl_hpc.launch.executors import submission_script
from pscl_hpc.launch.profiles import Container, Profile

RUNNING = "JobId=7 JobState=RUNNING Reason=None"
ENDING = "JobId=7 JobState=COMPLETING Reason=None"
OUT_OF_TIME = "JobId=7 JobState=COMPLETING Reason=TimeLimit"


class Batch:
    """A batch script with simulated Slurm commands, which record their calls."""

    def __init__(self, folder: Path, retries: int = 2) -> None:
        self.folder = folder
        self.files = folder / 'it\'s a "place"' / "jobs"
        self.files.mkdir(parents=True)
        (folder / "bin").mkdir()
        profile = Profile(time="10", retries=retries)
        self.script = folder / "script.sh"
        self.script.write_text(submission_script(self.files, "run", profile))
        self.stand_in(
            "scontrol", 'case $1 in show) cat "$STATE" ;; requeue) echo requeue "$2" >> "$NOTES" ;; esac'
        )
        self.stand_in("scancel", 'echo cancel "$1" >> "$NOTES"')
        self.stand_in("sleep", ":")
        self.state(RUNNING)

    def stand_in(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def state(self, text: str) -> None:
        (self.folder / "state").write_text(text + "\n")

    def start(self, tasks: str, **environment: str) -> subprocess.Popen[bytes]:
        self.stand_in("srun", tasks)
        (self.folder / "notes").unlink(missing_ok=True)
        places = {
            "STATE": str(self.folder / "state"),
            "NOTES": str(self.folder / "notes"),
            "SLURM_JOB_ID": "7",
        }
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(self.script)], env={**os.environ, **places, **environment, "PATH": path}
        )

    def run(self, tasks: str, **environment: str) -> tuple[int, list[str]]:
        code = self.start(tasks, **environment).wait(30)
        return code, self.notes()

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def test_exit_code_0_ends_the_job(batch: Batch) -> None:
    assert batch.run("exit 0") == (0, [])


def test_failures_are_requeued_until_the_retries_are_used_up(batch: Batch) -> None:
    assert batch.run("exit 137") == (137, ["requeue 7"])
    assert batch.run("exit 1", SLURM_RESTART_COUNT="1") == (1, ["requeue 7"])
    assert batch.run("exit 3", SLURM_RESTART_COUNT="2") == (3, [])
    assert (batch.files / "7.failures").read_text() == "0 137\n1 1\n2 3\n"


def test_each_job_of_an_array_has_separate_retries(batch: Batch) -> None:
    for place in ("0", "1"):
        array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": place}
        assert batch.run("exit 1", **array) == (1, ["requeue 7"])
        assert (batch.files / f"5_{place}.failures").read_text() == "0 1\n"


@pytest.mark.parametrize(
    ("word", "code", "asked"), [(STOPPED, 130, ["cancel 7"]), (REFUSED, 2, []), (REQUEUE, 255, ["requeue 7"])]
)
def test_a_status_file_overrides_the_exit_code(batch: Batch, word: str, code: int, asked: list[str]) -> None:
    (batch.files / "7.0.end").write_text(word + "\n")
    assert batch.run(f"exit {code}") == (code, asked)
    assert not (batch.files / "7.failures").exists()
    # The file of an earlier start of the job is ignored.
    assert batch.run("exit 9", SLURM_RESTART_COUNT="1") == (9, ["requeue 7"])


def test_a_job_that_slurm_is_ending_is_not_requeued(batch: Batch) -> None:
    batch.state(ENDING)
    assert batch.run("exit 143") == (143, [])
    assert not (batch.files / "7.failures").exists()


def test_a_job_that_could_not_save_before_its_time_limit_is_requeued(batch: Batch) -> None:
    script = batch.start("exec tail -f /dev/null")
    time.sleep(0.5)
    batch.state(OUT_OF_TIME)
    script.send_signal(signal.SIGTERM)
    assert script.wait(20) == 143
    assert batch.notes() == ["requeue 7"]
    assert (batch.files / "7.failures").read_text() == "0 143\n"


def test_the_script_waits_for_tasks_that_save_after_sigterm(batch: Batch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = batch.start(f"until [ -e {shlex.quote(str(go))} ]; do read -rt 0.1 <> <(:); done; exit 0")
    time.sleep(0.5)
    script.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(1)
    go.touch()
    assert script.wait(20) == 0
    assert batch.notes() == []


def test_containers() -> None:
    image = "/images/it's.sif"
    apptainer = Profile(gpus_per_node=1, container=Container(image=image, mounts=("/a b:/data",)))
    assert shlex.split(python_command(apptainer)) == [
        *(
            "env",
            "--ignore-signal=USR2",
            "apptainer",
            "exec",
            "--nv",
            "--bind",
            "/a b:/data",
            image,
            "python3",
        )
    ]
    assert srun_options(apptainer.container) == ["--kill-on-bad-exit=1"]
    pyxis = Container(image="docker://x", how="pyxis", mounts=("/a:/a", "/b:/b"), python="/opt/python")
    assert srun_options(pyxis)[1:] == ["--container-image=docker://x", "--container-mounts=/a:/a,/b:/b"]
    assert python_command(Profile(container=pyxis)) == "env --ignore-signal=USR2 /opt/python"

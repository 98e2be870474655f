"""What the batch script does when its tasks end, with simulated Slurm commands."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from pscl_hpc.launch.batch_script import python_command, srun_options
from pscl_hpc.launch.ends import EXIT_FULL, FULL, REFUSED, REQUEUE, STOPPED, read_end
from pscl_hpc.launch.executors import submission_script
from pscl_hpc.launch.profiles import Container, Profile
from tests.helpers import PATIENCE_S, eventually

RUNNING = "JobId=7 JobState=RUNNING Reason=None"
ENDING = "JobId=7 JobState=COMPLETING Reason=None"
OUT_OF_TIME = "JobId=7 JobState=COMPLETING Reason=TimeLimit"


class Batch:
    """A batch script with simulated Slurm commands, which record their calls."""

    def __init__(self, folder: Path, **keys: object) -> None:
        self.folder = folder
        self.files = folder / 'it\'s a "place"' / "jobs"
        self.files.mkdir(parents=True)
        (folder / "bin").mkdir()
        profile = Profile.model_validate({"time": "10", "retries": 2, **keys})
        self.script = folder / "script.sh"
        self.script.write_text(submission_script(self.files, "run", profile))
        self.stand_in(
            "scontrol",
            'case $1 in show) cat "$STATE" ;; requeue) echo requeue "$2" >> "$NOTES" ;; *) echo "$*" >> "$NOTES" ;; esac',
        )
        self.stand_in("sinfo", 'printf "n1\\nn2\\nn3\\n"')
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
            "SLURM_JOB_NUM_NODES": "1",
            "SLURMD_NODENAME": "n1",
        }
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(self.script)], env={**os.environ, **places, **environment, "PATH": path}
        )

    @property
    def started(self) -> str:
        """A file, quoted for the shell, that tasks make when they have started."""
        return shlex.quote(str(self.folder / "tasks-started"))

    def wait_for_tasks(self) -> None:
        eventually((self.folder / "tasks-started").exists)

    def run(self, tasks: str, **environment: str) -> tuple[int, list[str]]:
        (self.folder / "tmp").mkdir(exist_ok=True)
        code = self.start(tasks, TMPDIR=str(self.folder / "tmp"), **environment).wait(PATIENCE_S)
        assert not list((self.folder / "tmp").iterdir()), "it leaves no temporary file"
        return code, self.notes()

    def reason(self, restart: int = 0) -> str:
        """Why the job is not started again, which its record in Slurm has too."""
        word, reason = read_end(self.files, "7", restart)
        assert word in (REFUSED, FULL)
        assert self.notes() == [f"update JobId=7 Comment={reason}"]
        return reason

    def save(self, step: int) -> None:
        """A checkpoint of the run."""
        folder = self.folder / "a run" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step-{step:08d}.pt").touch()
        (self.files / "7.run").write_text(f"{folder.parent}\n")

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
    assert batch.run("exit 3", SLURM_RESTART_COUNT="2")[0] == 3
    assert "exit code 3; 3 starts failed without a new checkpoint" in batch.reason(2)
    assert (batch.files / "7.failures").read_text() == "0 137 - -\n1 1 - -\n2 3 - -\n"


def test_retries_count_from_the_last_new_checkpoint(batch: Batch) -> None:
    for restart in range(6):
        batch.save(100 * restart)
        assert batch.run("exit 137", SLURM_RESTART_COUNT=str(restart)) == (137, ["requeue 7"])
    assert (batch.files / "7.failures").read_text().splitlines()[-1] == "5 137 500 -"
    for restart in (6, 7):
        code, notes = batch.run("exit 137", SLURM_RESTART_COUNT=str(restart))
        assert (code, "requeue 7" in notes) == (137, restart == 6)
    assert "3 starts failed without a new checkpoint" in batch.reason(7)


def test_a_job_that_cannot_write_ends_for_good(batch: Batch) -> None:
    # What a full disk does: there is a little space for a line, but no more.
    batch.stand_in("head", '[ "$1" != -c ] || exit 1; exec /usr/bin/head "$@"')
    assert batch.run("exit 3")[0] == EXIT_FULL
    assert "full or over quota" in batch.reason()
    assert not (batch.files / "7.failures").exists()
    batch.stand_in("head", 'exec /usr/bin/head "$@"')
    assert batch.run("exit 3", SLURM_RESTART_COUNT="1") == (3, ["requeue 7"])
    assert not list(batch.files.glob(".*"))
    # A folder that is gone cannot be written either.
    shutil.rmtree(batch.files)
    code, notes = batch.run("exit 3", SLURM_RESTART_COUNT="2")
    assert (code, len(notes)) == (EXIT_FULL, 1)


def test_a_job_avoids_nodes_on_which_ranks_died(batch: Batch) -> None:
    died = (
        "echo 'srun: error: n2: task 1: Killed' >&2; echo 'srun: error: n1: task 0: Terminated' >&2; exit 143"
    )
    avoided = ["requeue 7", "update JobId=7 ExcNodeList=n2"]
    assert batch.run(died) == (143, avoided)
    assert (batch.files / "7.failures").read_text() == "0 143 - n2\n"
    # The user excluded another one.
    batch.state(f"{RUNNING} ExcNodeList=n3 NodeList=n1")
    batch.stand_in("sinfo", "seq -f n%g 9")
    assert batch.run(died, SLURM_RESTART_COUNT="1") == (
        143,
        ["requeue 7", "update JobId=7 ExcNodeList=n3,n2"],
    )


def test_no_node_is_avoided_that_the_job_needs(batch: Batch) -> None:
    died = "echo 'srun: error: n2: tasks 1-2: Killed' >&2; exit 137"
    assert batch.run(died, SLURM_JOB_NUM_NODES="2") == (137, ["requeue 7"])
    # A rank that ends by itself says nothing about its node.
    ended = "echo 'srun: error: n2: task 1: Exited with exit code 3' >&2; exit 3"
    (batch.files / "7.failures").unlink()
    assert batch.run(ended) == (3, ["requeue 7"])


@pytest.mark.parametrize("line", ["module load cuda/99", "cd /nowhere", "exit 5", "f() { false; }; f"])
def test_a_setup_line_that_fails_ends_the_job(tmp_path: Path, line: str) -> None:
    batch = Batch(tmp_path, setup=("export A=1", line, "true"))
    assert batch.run(f"touch {shlex.quote(str(tmp_path / 'started'))}")[0] == 2
    assert not (tmp_path / "started").exists()
    assert batch.reason().startswith("setup on n1: ")


def test_setup_lines_that_succeed_change_nothing(tmp_path: Path) -> None:
    batch = Batch(
        tmp_path,
        setup=("if [ 1 = 2 ]", "then false; fi", "[ -z full ] || export B=2", "[ -n '' ] && false || true"),
    )
    assert batch.run('[ "$B" = 2 ] || exit 9; false; exit 0') == (0, [])


def test_variables_in_the_environment_are_replaced_on_the_node(tmp_path: Path) -> None:
    values = {
        "A": "$HOME/x",
        "B": '${A}/`id` $(id) \\"$ $1',
        "C": 'it\'s "plain" $',
    }
    batch = Batch(tmp_path, environment=values)
    out = shlex.quote(str(tmp_path / "out"))
    assert batch.run(f'printf "%s\\n" "$A" "$B" "$C" > {out}', HOME="/home/of it") == (0, [])
    home = "/home/of it/x"
    assert (tmp_path / "out").read_text().splitlines() == [home, f'{home}/`id` $(id) \\"$ $1', values["C"]]


def test_a_variable_that_is_not_set_ends_the_job(tmp_path: Path) -> None:
    batch = Batch(tmp_path, environment={"A": "${NO_SUCH_VARIABLE}/x"})
    assert batch.run("exit 0")[0] == 2
    assert "NO_SUCH_VARIABLE" in batch.reason()


def test_each_job_of_an_array_has_separate_retries(batch: Batch) -> None:
    for place in ("0", "1"):
        array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": place}
        assert batch.run("exit 1", **array) == (1, ["requeue 7"])
        assert (batch.files / f"5_{place}.failures").read_text() == "0 1 - -\n"


@pytest.mark.parametrize(
    ("word", "code", "asked"),
    [
        (STOPPED, 130, ["cancel 7"]),
        (REFUSED, 2, ["update JobId=7 Comment=why"]),
        (FULL, EXIT_FULL, ["update JobId=7 Comment=why"]),
        (REQUEUE, 255, ["requeue 7"]),
    ],
)
def test_a_status_file_overrides_the_exit_code(batch: Batch, word: str, code: int, asked: list[str]) -> None:
    (batch.files / "7.0.end").write_text(word + "\nwhy\n")
    assert batch.run(f"exit {code}") == (code, asked)
    assert not (batch.files / "7.failures").exists()
    # The file of an earlier start of the job is ignored.
    assert batch.run("exit 9", SLURM_RESTART_COUNT="1") == (9, ["requeue 7"])


def test_a_job_that_slurm_is_ending_is_not_requeued(batch: Batch) -> None:
    batch.state(ENDING)
    assert batch.run("exit 143") == (143, [])
    assert not (batch.files / "7.failures").exists()


def test_a_job_that_could_not_save_before_its_time_limit_is_requeued(batch: Batch) -> None:
    script = batch.start(f"touch {batch.started}; exec tail -f /dev/null")
    batch.wait_for_tasks()
    batch.state(OUT_OF_TIME)
    script.send_signal(signal.SIGTERM)
    assert script.wait(PATIENCE_S) == 143
    assert batch.notes() == ["requeue 7"]
    assert (batch.files / "7.failures").read_text() == "0 143 - -\n"


def test_the_script_waits_for_tasks_that_save_after_sigterm(batch: Batch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    asked = tmp_path / "asked"
    # The script asks Slurm about the job when it is interrupted.
    batch.stand_in("scontrol", f'touch {shlex.quote(str(asked))}; cat "$STATE"')
    script = batch.start(
        f"touch {batch.started}; until [ -e {shlex.quote(str(go))} ]; do read -rt 0.1 <> <(:); done; exit 0"
    )
    batch.wait_for_tasks()
    script.send_signal(signal.SIGTERM)
    eventually(asked.exists)
    assert script.poll() is None
    go.touch()
    assert script.wait(PATIENCE_S) == 0
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
    for sbatch in (
        {"gres": "gpu:2"},
        {"gpus": 1},
        {"gpus-per-task": "a100:1"},
        {"gres": "shard:1,gpu:1g.10gb:2(S:0)"},
    ):
        assert "--nv" in python_command(Profile(container=apptainer.container, sbatch=sbatch))  # type: ignore[arg-type]
    assert "--nv" not in python_command(Profile(container=apptainer.container))
    assert srun_options(apptainer.container) == ["--kill-on-bad-exit=1"]
    pyxis = Container(image="docker://x", how="pyxis", mounts=("/a:/a", "/b:/b"), python="/opt/python")
    assert srun_options(pyxis)[1:] == ["--container-image=docker://x", "--container-mounts=/a:/a,/b:/b"]
    assert python_command(Profile(container=pyxis)) == "env --ignore-signal=USR2 /opt/python"


def test_a_node_that_failed_its_check_is_avoided(batch: Batch) -> None:
    (batch.files / "7.0.end").write_text("node\nnode n2: no memory\nn2\n")
    # srun names the node whose rank it killed for the other one's end.
    tasks = "echo 'srun: error: n1: task 0: Killed' >&2; exit 3"
    assert batch.run(tasks) == (3, ["requeue 7", "update JobId=7 ExcNodeList=n2"])
    assert (batch.files / "7.failures").read_text() == "0 3 - n2\n"


def test_the_users_comment_is_kept(tmp_path: Path) -> None:
    batch = Batch(tmp_path, sbatch={"comment": "of 'mine' $HOME"})
    (batch.files / "7.0.end").write_text(f"{REFUSED}\nwhy\n")
    assert batch.run("exit 2") == (2, ["update JobId=7 Comment=of 'mine' $HOME; why"])

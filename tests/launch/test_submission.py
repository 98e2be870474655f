"""Submissions that are refused before anything runs, and the status of runs without a running job."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pscl_hpc.cli.main import main
from pscl_hpc.config import RunConfig, to_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.launch.control import cancel, log_path, requeue
from pscl_hpc.launch.executors import default_cluster
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.status import find_runs, run_status, signal_delay_warning
from pscl_hpc.launch.submission import show_script, submit
from pscl_hpc.models import save_trunk
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.runs import RunFolder
from tests.helpers import PATIENCE_S

from .conftest import MakeConfig, write_job


def _pscl(reference: str) -> dict[str, object]:
    return {"method": {"name": "pscl-simclr", "reference": {"ids": [reference]}}}


def _tune(reference: str, **keys: object) -> dict[str, object]:
    return {"kind": "finetune", "method": None, "references": [reference], **keys}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("keys", "profile", "cluster", "named"),
    [
        ({"data": {"archive": "b.h5"}}, Profile(), "local", "b.h5: "),
        ({"data": {"archive": "a.h5", "datasets": ["allox"]}}, Profile(), "local", "did you mean 'alloy'"),
        ({"data": {"archive": "a.h5", "splits": ["all"]}}, Profile(), "local", "is in the splits ['all']"),
        ({"batch_size": 9}, Profile(tasks_per_node=2), "local", "set batch_size=8, or another multiple of 2"),
        (_pscl("alloy/0"), Profile(tasks_per_node=2), "local", "set method.reference.per_batch=2"),
        (_pscl("alloy/9"), Profile(), "local", "has no image 'alloy/9'"),
        (_pscl("other/0"), Profile(), "local", "method.reference.ids: other/0 has no mask in a.h5"),
        (_tune("alloy/9"), Profile(), "local", "has no image 'alloy/9'"),
        (_tune("alloy/0", validation_split="vall"), Profile(), "local", "validation_split 'vall' of alloy"),
        (_tune("alloy/0", semi_supervised={"splits": ["val"]}), Profile(), "local", "semi_supervised.splits"),
        (_tune("alloy/0", pretrained="nope"), Profile(), "local", "nope"),
        (_tune("alloy/0", batch_size=3), Profile(tasks_per_node=2), "local", "batch_size=4"),
        ({"run": "a.h5"}, Profile(), "local", "a.h5: is a file"),
        ({"run": "."}, Profile(), "local", "not a run folder"),
        ({"run": "runs/50%"}, Profile(), "local", "must not contain '%'"),
        ({}, Profile(partition="gpu"), "local", "partition is for Slurm"),
        ({}, Profile(setup=("module load x",)), "local", "setup is for Slurm"),
        ({}, Profile(mem="1M"), "local", "mem is for Slurm"),
        ({}, Profile(sbatch={"exclusive": True}), "local", "sbatch is for Slurm"),
        ({}, Profile(gpus_per_node=99), "local", "--gpus-per-node 99"),
        ({}, Profile(nodes=2), "local", "--nodes 2"),
        ({}, Profile(), "slurm", "sbatch"),
    ],
)
def test_bad_submissions_are_refused_and_leave_nothing(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, object],
    profile: Profile,
    cluster: str,
    named: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("PATH", "/nowhere")
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        submit(make_config(**keys), cluster=cluster, profile=profile)
    assert named in str(caught.value)
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.usefixtures("place")
def test_a_trunk_that_is_not_the_configured_one_is_refused(make_config: MakeConfig) -> None:
    save_trunk(Path("trunk.safetensors"), UNet(UNetConfig(widths=(4, 8))))
    keys = _tune("alloy/0", pretrained="trunk.safetensors", model={"widths": [4, 8, 16]})
    with pytest.raises(UserError, match=r"trunk\.safetensors.*model\.widths"):
        submit(make_config(**keys), cluster="local")
    assert not Path("runs").exists()


@pytest.mark.usefixtures("place")
def test_a_finished_or_different_run_is_not_touched(make_config: MakeConfig) -> None:
    config = make_config(run="runs/a")
    with RunFolder.start(config, torch.device("cpu")):
        pass
    before = Path("runs/a/run.json").read_bytes()
    with pytest.raises(UserError, match="runs/a"):
        submit(config, cluster="local")
    with RunFolder.start(make_config(run="runs/b"), torch.device("cpu")) as folder:
        folder.update(status="failed")
    RunFolder.load("runs/b").update(status="failed")
    with pytest.raises(UserError, match=r"schedule\.steps"):
        submit(make_config(run="runs/b", steps=21), cluster="local")
    assert Path("runs/a/run.json").read_bytes() == before
    assert not list(Path("runs").rglob("jobs"))


@pytest.mark.usefixtures("place")
def test_a_run_started_by_hand_has_a_status_too(make_config: MakeConfig) -> None:
    with RunFolder.start(make_config(run="runs/a"), torch.device("cpu")) as folder:
        log = folder.metrics_log()
        for step in range(1, 6):
            log.write(step, {"loss": 2.0, "images_per_second": 8.0})
        folder.checkpoints.save(5, {})
        running = run_status(folder.path)
        assert (running.state, running.job, running.step, running.checkpoint) == ("running", "", 5, 5)
        with pytest.raises(UserError, match="runs/a"):
            log_path(folder.path)
        for ask in (cancel, requeue):
            with pytest.raises(UserError, match="runs/a"):
                ask(folder.path)
    assert run_status(folder.path).state == "done"


@pytest.mark.usefixtures("place")
def test_a_run_whose_process_is_gone_is_lost(make_config: MakeConfig) -> None:
    with RunFolder.start(make_config(run="runs/a"), torch.device("cpu")) as folder:
        pass
    folder.update(status="running")
    assert run_status(folder.path).state == "lost"


@pytest.mark.usefixtures("place")
def test_a_folder_in_which_nothing_has_started_is_prepared(make_config: MakeConfig) -> None:
    folder = RunFolder.reserve(make_config(run="runs/a"))
    folder.update(archive="fingerprint")
    found = run_status(folder.path)
    assert (found.state, found.job) == ("prepared", "")


def set_clocks(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    """The times of the lines of a log; for the status it is the time of the last line."""
    clock, now = iter(times), [times[0]]

    def tick() -> float:
        now[0] = next(clock)
        return now[0]

    monkeypatch.setattr("pscl_hpc.runs.metrics.time", SimpleNamespace(time=tick))
    monkeypatch.setattr("pscl_hpc.launch.status.time", SimpleNamespace(time=lambda: now[0]))


@pytest.mark.usefixtures("place")
def test_time_left_uses_the_pace_of_the_last_lines(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clocks(monkeypatch, 0.0, *(1000.0 + 10.0 * count for count in range(25)))
    with RunFolder.start(make_config(run="runs/a", steps=100), torch.device("cpu")) as folder:
        log = folder.metrics_log()
        for step in range(1, 27):
            log.write(step * 2, {"loss": 1.0})
        # 48 steps left, 2 steps in 10 seconds; the long pause after the first line does not count.
        assert run_status(folder.path).eta_s == pytest.approx((100 - 52) * 5.0)


@pytest.mark.usefixtures("place")
def test_a_pause_between_attempts_counts_as_neither_time_left_nor_a_step(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = 12 * 3600.0
    times = [*(10.0 * step for step in range(1, 11)), *(night + 10.0 * step for step in range(11, 14))]
    set_clocks(monkeypatch, *times)
    config = make_config(run="runs/a", steps=100)
    with RunFolder.start(config, torch.device("cpu")) as folder:
        folder.record_first_step(0)
        for step in range(1, 11):
            folder.metrics_log().write(step, {"loss": 1.0})
        assert run_status(folder.path).eta_s == pytest.approx(90 * 10.0)
    folder.update(status="stopped")
    with RunFolder.start(config, torch.device("cpu")) as folder:
        folder.record_first_step(10)
        folder.metrics_log().write(11, {"loss": 1.0})
        assert run_status(folder.path).eta_s is None
        for step in (12, 13):
            folder.metrics_log().write(step, {"loss": 1.0})
        assert run_status(folder.path).eta_s == pytest.approx(87 * 10.0)
    assert signal_delay_warning(folder.path, Profile(time="60")) == ""


@pytest.mark.usefixtures("place")
def test_a_run_with_relative_paths_is_requeued_from_its_working_directory(
    make_config: MakeConfig, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"data": {"archive": str(place / "a.h5")}, "pretrained": "runs/before"}
    folder = RunFolder.reserve(make_config(run="runs/a", **_tune("alloy/0", **keys)))
    folder.update(status="failed")
    write_job(folder.path, cluster="local", host=socket.gethostname())
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match="requeue it from"):
        requeue(place / "runs" / "a")


@pytest.mark.usefixtures("place")
def test_a_damaged_folder_does_not_hide_the_others(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "torn", "other"):
        with RunFolder.start(make_config(run=f"runs/{name}"), torch.device("cpu")):
            pass
    (Path("runs") / "torn" / "run.json").write_text('{"status": "do')
    (Path("runs") / "other" / "run.json").write_text('{"status": "done", "attempts": 7}')
    assert main(["jobs", "list"]) == 1
    shown = capsys.readouterr()
    assert "runs/good" in shown.out
    assert "skipped: runs/torn/run.json: " in shown.err
    assert "skipped: runs/other: " in shown.err
    assert main(["jobs", "list", "--json"]) == 1
    assert [each["run"] for each in json.loads(capsys.readouterr().out)] == ["runs/good"]


@pytest.mark.usefixtures("place")
def test_a_missing_run_folder_is_named(tmp_path: Path) -> None:
    for ask in (run_status, cancel, requeue, log_path):
        with pytest.raises(UserError, match="run folder"):
            ask(tmp_path / "absent")
    with pytest.raises(UserError, match="absent"):
        find_runs(tmp_path / "absent")
    assert find_runs(tmp_path) == []


def test_the_default_cluster_is_slurm_if_its_controller_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert default_cluster() == "local"
    answers = {"sbatch": "0", "srun": "0", "sinfo": "1"}
    for name, code in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    assert default_cluster() == "local"
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit 0\n")
    assert default_cluster() == "slurm"


@pytest.mark.usefixtures("place", "slurm_commands")
def test_slurm_needs_a_time_limit_and_its_error_is_passed_on(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="--time"):
        submit(make_config(), cluster="slurm")
    config: RunConfig = make_config(run="runs/a")
    for _ in range(2):
        with pytest.raises(UserError, match=r"job: invalid partition specified$"):
            submit(config, cluster="slurm", profile=Profile(partition="x", time="5"))
        assert not Path("runs/a").exists(), "nothing is left of a refused submission"
    # A run that was there before is as before.
    RunFolder.reserve(config).update(status="stopped", error="cancelled")
    with pytest.raises(UserError, match="invalid partition"):
        submit(config, cluster="slurm", profile=Profile(partition="x", time="5"))
    assert (run_status(Path("runs/a")).state, run_status(Path("runs/a")).detail) == ("stopped", "cancelled")


@pytest.mark.usefixtures("place")
def test_submit_refuses_wait_for_a_study_and_prints_the_script(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    Path("c.yaml").write_text(to_yaml(make_config()))
    assert main(["submit", "study", "--config", "c.yaml", "--wait"]) == 2
    assert "--wait" in capsys.readouterr().err
    shown = ["submit", "pretrain", "--config", "c.yaml", "--cluster", "slurm", "--time", "5", "--dry-run"]
    assert main(shown) == 0
    script = capsys.readouterr().out
    assert main([*shown, "--json"]) == 0
    # The name of a new run folder contains the time in seconds.
    assert json.loads(capsys.readouterr().out)["script"].splitlines()[:5] == script.splitlines()[:5]
    # A folder that a submission would refuse is refused here, too; nothing is made.
    there = RunFolder.reserve(make_config(run="runs/there")).path
    assert main([*shown, f"run={there}"]) == 0
    assert main([*shown, f"run={there}", "seed=77"]) == 2
    assert str(there) in capsys.readouterr().err
    assert main([*shown, "run=runs/new", "seed=77"]) == 0
    assert not Path("runs/new").exists()


@pytest.mark.usefixtures("place")
def test_the_batch_script_has_the_requested_resources_even_without_slurm(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    profile = Profile(
        partition="gpu",
        time="90",
        nodes=3,
        cpus_per_task=8,
        gpus_per_node=4,
        sbatch={"mail-user": "me", "exclusive": True, "contiguous": False},
    )
    before = sorted(Path.cwd().rglob("*"))
    script = show_script(make_config(run="runs/a", batch_size=12), cluster="slurm", profile=profile)
    assert sorted(Path.cwd().rglob("*")) == before
    for line in (
        *("partition=gpu", "time=90", "nodes=3", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=8"),
        *("job-name=fast", "requeue", "signal=USR2@120", "mail-user=me", "exclusive", "open-mode=append"),
    ):
        assert f"#SBATCH --{line}\n" in script
    assert "contiguous" not in script
    assert "wckey" not in script
    assert "--kill-on-bad-exit=1" in script
    assert script.index("SRUN_CPUS_PER_TASK") < script.index("srun ") < script.index("tasks=$!")
    with pytest.raises(UserError, match="batch_size=12"):
        show_script(make_config(), cluster="slurm", profile=profile)
    with pytest.raises(UserError, match="--cluster slurm"):
        show_script(make_config(), cluster="local", profile=profile)
    with pytest.raises(UserError, match="--time"):
        show_script(make_config(), cluster="slurm", profile=Profile())


@pytest.mark.usefixtures("place")
def test_a_short_signal_delay_is_warned_about(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clocks(monkeypatch, *(50.0 * count for count in range(100)))
    with RunFolder.start(make_config(run="runs/a", steps=100), torch.device("cpu")) as folder:
        assert signal_delay_warning(folder.path, Profile(time="60")) == ""
        log = folder.metrics_log()
        for step in range(1, 7):
            log.write(step, {"loss": 1.0, "checkpoint_seconds": 15.0})
    assert signal_delay_warning(folder.path, Profile(time="60", signal_delay_s=130)) == ""
    warning = signal_delay_warning(folder.path, Profile(time="60"))
    assert "120 s" in warning
    assert "signal_delay_s to 130" in warning


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("command", [["list"], ["status", "runs/a"], ["logs", "runs/a"]])
def test_job_commands_do_not_import_torch(make_config: MakeConfig, command: list[str]) -> None:
    """Its import takes seconds."""
    with RunFolder.start(make_config(run="runs/a"), torch.device("cpu")) as folder:
        folder.checkpoints.save(1, {})
    write_job(folder.path, cluster="local")
    script = (
        "import sys; from pscl_hpc.cli.main import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, "jobs", *command], timeout=PATIENCE_S)
    assert done.returncode == 0

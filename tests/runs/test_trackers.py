"""Weights & Biases and MLflow: with the packages where they are installed, and with minimal stand-ins everywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pscl_hpc.config import LogConfig
from pscl_hpc.errors import UserError
from pscl_hpc.pretraining import pretrain
from pscl_hpc.runs.trackers import Trackers, open_trackers
from tests.helpers import small_archive, small_config


class FakeWandb(ModuleType):
    """Records what is sent to it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []
        self.fails = ""

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def init(self, **options: Any) -> SimpleNamespace:
        if self.fails == "init":
            raise RuntimeError("no API key\nwas found")
        self.calls.append(("init", options))
        return SimpleNamespace(log=self.log, finish=lambda: self.calls.append(("finish", None)))

    def log(self, values: dict[str, float], step: int) -> None:
        if self.fails == "log":
            raise ConnectionError("gone")
        self.calls.append(("log", (step, values)))

    def of(self, name: str) -> list[Any]:
        return [value for key, value in self.calls if key == name]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_resumed_run_continues_the_same_curve(tmp_path: Path, wandb: FakeWandb) -> None:
    archive = small_archive(tmp_path / "a.h5")
    config = small_config(
        archive, tmp_path / "run", method={"name": "simclr"}, log={"every_steps": 1, "wandb": "alloys"}
    )
    folder = pretrain(config)
    (folder.path / "checkpoints" / "step-00000006.pt").unlink()
    folder.update(status="running")
    pretrain(config)
    first, second = wandb.of("init")
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("alloys", "run", "allow")
    assert first["dir"] == str(tmp_path / "run")
    assert first["config"]["method"]["name"] == "simclr"
    assert [step for step, _ in wandb.of("log")] == [1, 2, 3, 4, 5, 6, 5, 6]
    assert all(isinstance(v, float | int) for _, values in wandb.of("log") for v in values.values())
    assert wandb.of("log")[0][1]["loss"] == folder.metrics()[0]["loss"]
    assert len(wandb.of("finish")) == 2


def test_another_run_has_another_name(tmp_path: Path, wandb: FakeWandb) -> None:
    config = LogConfig(wandb="p")
    for folder, created in (("a", "1"), ("a", "2"), ("b", "1"), ("a", "1")):
        open_trackers(config, tmp_path / folder, "name", created, {})
    names = [options["id"] for options in wandb.of("init")]
    assert len(set(names)) == 3
    assert names[0] == names[3]


def test_a_tracker_that_fails_in_training_is_told_once(
    tmp_path: Path, wandb: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = small_archive(tmp_path / "a.h5")
    wandb.fails = "log"
    log = {"every_steps": 1, "wandb": "alloys", "probe_every": 0}
    folder = pretrain(small_config(archive, tmp_path / "run", method={"name": "simclr"}, log=log))
    assert folder.done
    assert len(folder.metrics()) == 6
    assert capsys.readouterr().err.count("log.wandb: ConnectionError: gone") == 1


def test_a_tracker_that_cannot_start_is_an_error(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.fails = "init"
    with pytest.raises(UserError, match=r"log\.wandb: .*no API key was found") as caught:
        open_trackers(LogConfig(wandb="p"), tmp_path, "name", "1", {})
    assert "\n" not in str(caught.value)
    for key in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, key, None)
        with pytest.raises(UserError, match=rf"pscl-hpc\[{key}\]"):
            open_trackers(LogConfig.model_validate({key: "x"}), tmp_path, "name", "1", {})


def test_none_by_default(tmp_path: Path) -> None:
    found = open_trackers(LogConfig(), tmp_path, "name", "1", {})
    found.write(1, {"loss": 1.0})
    found.close()
    Trackers().close()
    assert list(tmp_path.iterdir()) == []


def test_wandb_itself_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        found = open_trackers(LogConfig(wandb="alloys"), tmp_path, "name", "now", {"a": {"b": 1}})
        found.write(step, {"loss": 0.5, "val/dice/matrix(gamma)": 0.25})
        found.close()
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len({run.name.rpartition("-")[2] for run in runs}) == 1
    assert all(list(run.glob("*.wandb")) for run in runs)


def test_mlflow_itself_continues_the_run(tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"file:{tmp_path / 'mlruns'}"
    for steps in ((1, 2, 3), (3, 4)):
        found = open_trackers(LogConfig(mlflow=uri), tmp_path / "run", "exp", "now", {"a": {"b": 1}})
        for step in steps:
            found.write(step, {"loss": 1 / step, "val/dice/matrix(gamma)": 0.25})
        found.close()
    client = tracking.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("exp").experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a.b": "1"}
    assert [each.step for each in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]
    assert run.data.metrics["val/dice/matrix_gamma_"] == 0.25

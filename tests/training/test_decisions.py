"""The number of steps that fit into a time, and the precision: decided once, kept by a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.archive import Archive
from pscl_hpc.config import RuntimeConfig, ScheduleConfig, load_config, resolve_config, to_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.launch.status import run_status
from pscl_hpc.pretraining import pretrain
from pscl_hpc.pretraining.task import PretrainTask
from pscl_hpc.results.runs import read_run
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import finetune
from pscl_hpc.segmentation.finetune import FinetuneTask
from pscl_hpc.segmentation.trained import open_run
from pscl_hpc.training import Loop, Ranks, autocast, decisions, device
from tests.helpers import small_archive, small_config
from tests.segmentation.helpers import settings, stop_after_a_step, write_archive

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive") / "alloys.h5")


@pytest.fixture
def five_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that decide the number of steps on any machine."""
    for task in (FinetuneTask, PretrainTask):
        monkeypatch.setattr(task, "fewest_steps", 5)
        monkeypatch.setattr(task, "most_steps", 5)


@pytest.fixture
def fast_bf16(monkeypatch: pytest.MonkeyPatch) -> Any:
    device.fastest_precision.cache_clear()
    monkeypatch.setattr(device, "measure_precisions", lambda: {"fp32": 2.0, "bf16": 1.0})
    yield
    device.fastest_precision.cache_clear()


class Limits:
    fewest_steps, most_steps = 100, 1000


@pytest.mark.parametrize(
    ("left", "seconds", "expected", "warns"),
    [(300.0, 0.5, 600, False), (30.0, 0.5, 100, True), (-2.0, 0.5, 100, True), (3000.0, 0.5, 1000, True)],
)
def test_the_steps_that_fit_within_limits(left: float, seconds: float, expected: int, warns: bool) -> None:
    said: list[str] = []
    limits: Any = Limits()
    assert decisions.number_of_steps(5.0, left, seconds, limits, said.append) == expected
    assert str(expected) in said[0]
    assert "schedule.minutes" in said[0]
    assert said[0].startswith("warning: ") is warns


def test_the_time_of_a_step_is_a_mean_over_the_schedule(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that cost more after 40% of the schedule, as in self-training; first steps that cost much more."""
    clock, made = [0.0], []

    def step(loop: Loop, batches: list[Any], *, measure: bool) -> dict[str, float]:
        number = loop.position.step
        made.append(number)
        clock[0] += 50.0 if len(made) == 1 or number - made[-2] != 1 else 1.0 if number < 400 else 3.0
        return {}

    def validate(task: FinetuneTask, step: int) -> tuple[None, dict[str, Any]]:
        clock[0] += 30.0
        return None, {}

    monkeypatch.setattr(decisions.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Loop, "step", step)
    monkeypatch.setattr(FinetuneTask, "validate", validate)
    config = settings(archive, tmp_path, schedule={"steps": 1000}, validate_every=50)
    for budget, times in ((1e9, 15), (1.0, 11)):  # in a hurry, one step a place after the first place
        made.clear()
        with Archive(archive) as opened:
            task = FinetuneTask(config, opened, Ranks.alone(CPU))
            folder = RunFolder.follow(tmp_path, config, done=False)
            found = decisions._seconds_per_step(task, config, folder, Ranks.alone(CPU), budget)
        assert found == pytest.approx(0.4 * 1.0 + 0.6 * 3.0 + 30.0 / 50)
        assert len(made) == times
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("five_steps")
def test_a_run_by_time_equals_a_run_by_steps(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "validate_every": 2,
        "average": 0.5,
        "semi_supervised": {"name": "self-training", "batch_size": 2},
    }
    schedule = {"decay": "cosine", "warmup_steps": 3}
    timed = finetune(settings(archive, tmp_path / "timed", schedule={**schedule, "minutes": 1e-4}, **changes))
    assert "5 steps" in capsys.readouterr().err
    assert timed.record["decided"] == {"schedule.steps": 5}
    # Warm-up takes at most a tenth of the steps.
    counted = finetune(
        settings(archive, tmp_path / "counted", schedule={"decay": "cosine", "steps": 5}, **changes)
    )
    files = [(run.path / "model.safetensors").read_bytes() for run in (timed, counted)]
    assert files[0] == files[1]
    assert timed.metrics()[-1]["step"] == 5
    assert run_status(timed.path).total == 5
    assert any("5 steps" in note for note in read_run(timed.path, "timed").notes)


@pytest.mark.usefixtures("five_steps")
def test_a_resumed_run_keeps_the_number_of_steps(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [
        settings(archive, tmp_path / name, schedule={"minutes": 1e-4, "decay": "cosine"}) for name in "ab"
    ]
    whole = finetune(configs[0])
    stop_after_a_step(configs[1])
    assert 0 < run_status(Path(configs[1].run)).step < 5
    monkeypatch.setattr(FinetuneTask, "fewest_steps", 9)
    monkeypatch.setattr(FinetuneTask, "most_steps", 9)
    monkeypatch.setattr(decisions, "_seconds_per_step", lambda *_: pytest.fail("measured again"))
    resumed = finetune(configs[1])
    assert resumed.metrics()[-1]["step"] == 5
    files = [(run.path / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert files[0] == files[1]


@pytest.mark.usefixtures("five_steps")
def test_pretraining_by_time_with_accumulated_passes(tmp_path: Path) -> None:
    source = small_archive(tmp_path / "a.h5")
    changes = {"batch_size": 4, "accumulate": 2, "method": {"name": "simclr"}}
    timed = pretrain(small_config(source, tmp_path / "timed", schedule={"minutes": 1e-4}, **changes))
    counted = pretrain(small_config(source, tmp_path / "counted", schedule={"steps": 5}, **changes))
    files = [(run.path / "trunk.safetensors").read_bytes() for run in (timed, counted)]
    assert files[0] == files[1]


@pytest.mark.usefixtures("fast_bf16")
def test_precision_is_measured_once_and_kept(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = {"device": "cpu", "threads": 1}
    automatic = settings(archive, tmp_path / "auto", runtime={**runtime, "precision": "auto"})
    run = finetune(automatic)
    assert run.record["decided"] == {"runtime.precision": "bf16"}
    half = finetune(settings(archive, tmp_path / "half", runtime={**runtime, "precision": "bf16"}))
    files = [(one.path / "model.safetensors").read_bytes() for one in (run, half)]
    assert files[0] == files[1]
    # A later process, or another machine, finds fp32 faster.
    device.fastest_precision.cache_clear()
    monkeypatch.setattr(device, "measure_precisions", lambda: {"fp32": 1.0, "bf16": 2.0})
    assert open_run(run.path)[2].runtime.precision == "bf16"
    record = json.loads((run.path / "run.json").read_text())
    record["status"] = "stopped"
    (run.path / "run.json").write_text(json.dumps(record))
    assert finetune(automatic).record["decided"] == {"runtime.precision": "bf16"}


def test_bf16_has_to_be_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, expected in ((0.5, "bf16"), (0.95, "fp32"), (2.0, "fp32")):
        device.fastest_precision.cache_clear()
        monkeypatch.setattr(device, "measure_precisions", lambda bf16=seconds: {"fp32": 1.0, "bf16": bf16})
        assert device.fastest_precision(CPU) == expected
        with autocast(CPU, RuntimeConfig(precision="auto")):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if expected == "bf16" else torch.float32)
    device.fastest_precision.cache_clear()


def test_both_precisions_are_timed() -> None:
    seconds = device.measure_precisions()
    assert set(seconds) == {"fp32", "bf16"}
    assert min(seconds.values()) > 0


def test_steps_and_minutes_exclude_each_other(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps and minutes"):
        ScheduleConfig(steps=10, minutes=1.0)
    with pytest.raises(ValueError, match="minutes"):
        ScheduleConfig(steps=0)
    file = tmp_path / "base.yaml"
    file.write_text(to_yaml(settings(archive, tmp_path / "run", schedule={"steps": 10})))
    later = tmp_path / "later.yaml"
    later.write_text("extends: base.yaml\nschedule:\n  minutes: 2\n")
    for config in (load_config(file, ["schedule.minutes=2"]), load_config(later)):
        assert (config.schedule.steps, config.schedule.minutes) == (0, 2.0)
        assert resolve_config(config.model_dump(mode="json"), source="again") == config
    back = load_config(later, ["schedule.steps=7"]).schedule
    assert (back.steps, back.minutes) == (7, 0.0)
    assert load_config(file, ["schedule.minutes=0"]).schedule.steps == 10
    with pytest.raises(UserError, match=r"schedule\.steps and schedule\.minutes"):
        load_config(file, ["schedule.steps=7", "schedule.minutes=2"])
    both = tmp_path / "both.yaml"
    both.write_text("extends: base.yaml\nschedule: {minutes: 2, steps: 3}\n")
    with pytest.raises(UserError, match=r"both\.yaml.*steps and minutes"):
        load_config(both)

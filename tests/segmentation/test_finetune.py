"""The training loop: learning, repeating, resuming, refusing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pscl_hpc.archive import Archive
from pscl_hpc.config import to_yaml
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.models import load_segmentation, save_trunk
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import finetune
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.finetune import build_net, optimiser_groups
from pscl_hpc.segmentation.losses import class_weights
from pscl_hpc.segmentation.metrics import Scores
from pscl_hpc.training import StopRequested, clear_stop, device, request_stop
from tests.helpers import PATIENCE_S

from .helpers import CLASSES, SCRATCH, micrograph, settings, write_archive

VOLATILE = ("time", "images_per_second", "memory_mb", "checkpoint_seconds")


def metrics(run: Path) -> list[dict[str, Any]]:
    """Logged lines without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in VOLATILE} for line in lines]


def test_it_learns_and_keeps_the_best_weights(trained: RunFolder) -> None:
    lines = trained.metrics()
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    validations = {line["step"]: line["val/mean_dice"] for line in lines if "val/mean_dice" in line}
    assert list(validations) == [20, 40, 60]
    best = trained.record["best"]
    assert best["mean_dice"] == max(validations.values()) == validations[best["step"]]
    assert best["mean_dice"] > 0.85
    assert {"ce", "dice_loss", "lr", "encoder/lr", "images_per_second"} <= lines[0].keys()
    assert {"val/dice/carbide", "val/dice/void"} <= next(
        line for line in lines if "val/mean_dice" in line
    ).keys()
    net, card = load_segmentation(trained.path)
    assert (card.classes, card.background, card.ignore_classes) == (CLASSES, 0, (SCRATCH,))
    mask = micrograph(0)[1]
    pixels = np.bincount(mask[mask < SCRATCH], minlength=len(CLASSES))
    assert card.class_weights == class_weights("balanced", pixels)
    stored = trained.checkpoints.load_best()
    assert stored is not None
    assert all(torch.equal(value, stored["model"][key]) for key, value in net.state_dict().items())


def test_the_earliest_of_the_best_validations_is_kept(
    archive_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = iter([0.5, 0.9, 0.9, 0.4])
    scores = lambda *_: Scores(next(dice), {}, None, {}, None, 1)  # noqa: E731
    monkeypatch.setattr(sys.modules[finetune.__module__], "score_images", scores)
    every = {"validate_every": 1, "checkpoint": {"every_steps": 1, "keep": 4}}
    folder = finetune(settings(archive_file, tmp_path / "run", schedule={"steps": 4}, **every))
    assert folder.record["best"] == {"step": 2, "mean_dice": 0.9}
    second = torch.load(folder.path / "checkpoints/step-00000002.pt", weights_only=True)["model"]
    net, _ = load_segmentation(folder.path)
    assert all(torch.equal(value, second[key]) for key, value in net.state_dict().items())


def test_same_configuration_and_seed_same_bytes(archive_file: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 10), ("b", 10), ("c", 11)):
        torch.manual_seed(time.time_ns())  # global random state must not matter
        finetune(settings(archive_file, tmp_path / name, seed=seed))
    model = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert model[0] == model[1] != model[2]
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != metrics(tmp_path / "c")


def test_reading_processes_change_nothing(
    archive_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Neither do more of them than CPUs, of which one sentence warns."""
    for owner, name in ((device, "usable_cpus"), (torch._utils, "cpu_count")):
        monkeypatch.setattr(owner, name, lambda: 1)
    finetune(settings(archive_file, tmp_path / "a"))
    assert "runtime.workers" not in capsys.readouterr().err
    runtime = {"device": "cpu", "threads": 1, "workers": 2}
    finetune(settings(archive_file, tmp_path / "b", runtime=runtime))
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert capsys.readouterr().err.count("runtime.workers is 2") == 1
    assert not any("DataLoader" in str(warning.message) for warning in recwarn)


def start_process(config: FinetuneConfig, folder: Path) -> subprocess.Popen[bytes]:
    (folder / "config.yaml").write_text(to_yaml(config))
    code = (
        "import sys; from pscl_hpc.config import load_config; from pscl_hpc.segmentation import finetune; "
        "finetune(load_config(sys.argv[1]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(folder / "config.yaml")])


def test_a_killed_run_resumes_to_the_same_weights(archive_file: Path, tmp_path: Path) -> None:
    changes = {
        "schedule": {"steps": 120, "decay": "cosine"},
        "validate_every": 7,
        "checkpoint": {"every_steps": 3},
    }
    killed = settings(archive_file, tmp_path / "killed", **changes)
    process = start_process(killed, tmp_path)
    deadline = time.monotonic() + PATIENCE_S
    folder = tmp_path / "killed" / "checkpoints"
    while not (folder.is_dir() and any(int(p.stem[5:]) >= 6 for p in folder.glob("step-*.pt"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert RunFolder.load(tmp_path / "killed").record["status"] == "running"

    folder_after = finetune(killed)
    assert len(folder_after.record["attempts"]) == 2
    finetune(settings(archive_file, tmp_path / "whole", **changes))
    model = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert model[0] == model[1]
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert folder_after.record["best"] == RunFolder.load(tmp_path / "whole").record["best"]


def test_a_finished_run_is_given_back_untouched(archive_file: Path, tmp_path: Path) -> None:
    config = settings(archive_file, tmp_path / "run")
    finetune(config)
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != "run.lock"
    }
    assert finetune(config).done
    assert finetune(config).done
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_without_validation_the_last_weights_are_kept(archive_file: Path, tmp_path: Path) -> None:
    folder = finetune(settings(archive_file, tmp_path / "run", validation_split=""))
    assert folder.record["best"] == {"step": 6, "mean_dice": None}
    assert not (tmp_path / "run/checkpoints/best.pt").exists()
    net, _ = load_segmentation(folder.path)
    last = folder.checkpoints.load_latest()
    assert last is not None
    assert last["step"] == 6
    assert all(torch.equal(value, last["model"][key]) for key, value in net.state_dict().items())


def test_a_pretrained_trunk_is_used_and_its_encoder_learns_slower(archive_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    trunk = UNet(UNetConfig(widths=(3, 6), mean=(0.4,), std=(0.2,)))
    save_trunk(tmp_path / "trunk.safetensors", trunk)
    config = settings(archive_file, tmp_path / "run", pretrained=str(tmp_path), encoder_lr_scale=0.1)
    net = build_net(config, 4)
    assert net.trunk.config == trunk.config
    assert all(torch.equal(value, trunk.state_dict()[key]) for key, value in net.trunk.state_dict().items())
    rates = {id(p): group["lr"] for group in optimiser_groups(net, config) for p in group["params"]}
    assert {rates.pop(id(p)) for p in net.trunk.encoder.parameters()} == {0.01 * 0.1}
    assert {rates.pop(id(p)) for p in net.trunk.decoder.parameters()} == {0.01}
    assert {rates.pop(id(p)) for p in net.classifier.parameters()} == {0.01}
    assert not rates
    folder = finetune(config)
    assert load_segmentation(folder.path)[1].model == trunk.config
    line = folder.metrics()[0]
    assert (line["lr"], line["encoder/lr"]) == (0.01, pytest.approx(0.001))


def test_from_scratch_everything_learns_at_the_whole_rate(archive_file: Path, tmp_path: Path) -> None:
    config = settings(archive_file, tmp_path / "run")
    net = build_net(config, 4)
    assert {group["lr"] for group in optimiser_groups(net, config)} == {0.01}
    assert len([p for group in optimiser_groups(net, config) for p in group["params"]]) == len(
        list(net.parameters())
    )


def test_a_loss_that_is_not_finite_names_step_and_images(archive_file: Path, tmp_path: Path) -> None:
    config = settings(archive_file, tmp_path / "run", optimiser={"lr": 1e30})
    with pytest.raises(JobError, match=r"step 2 .*alloy/train0.*optimiser\.lr"):
        finetune(config)
    record = RunFolder.load(tmp_path / "run").record
    assert record["status"] == "failed"
    assert "step 2" in record["error"]


def test_a_gradient_that_is_not_finite_keeps_no_weights(
    archive_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*arguments: Any) -> Any:
        net = build_net(*arguments)
        next(iter(net.parameters())).register_hook(lambda gradient: gradient * float("nan"))
        return net

    monkeypatch.setattr(sys.modules[build_net.__module__], "build_net", poisoned)
    config = settings(archive_file, tmp_path / "run", checkpoint={"every_steps": 1})
    with pytest.raises(JobError, match=r"gradient .*step 1 .*alloy/train0"):
        finetune(config)
    assert not RunFolder.load(tmp_path / "run").checkpoints.steps()


def test_wrong_input_leaves_no_folder(archive_file: Path, tmp_path: Path) -> None:
    save_trunk(tmp_path / "deep.safetensors", UNet(UNetConfig(widths=(4,) * 7)))
    for changes in (
        {"pretrained": str(tmp_path / "deep.safetensors")},
        {"references": ["alloy/test0"]},
        {"pretrained": str(tmp_path / "nowhere")},
        {"data": {"archive": str(tmp_path / "nowhere.h5")}},
    ):
        with pytest.raises(UserError):
            finetune(settings(archive_file, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()


def test_a_trunk_deeper_than_the_window_is_named(archive_file: Path, tmp_path: Path) -> None:
    trunk = tmp_path / "deep.safetensors"
    save_trunk(trunk, UNet(UNetConfig(widths=(4,) * 7)))
    with pytest.raises(UserError, match=r"pretrained: .*deep\.safetensors.*crop .*64"):
        finetune(settings(archive_file, tmp_path / "run", pretrained=str(trunk)))
    assert not (tmp_path / "run").exists()


def test_a_collection_without_classes_is_refused(archive_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unnamed/a"):
        finetune(settings(archive_file, tmp_path / "run", references=["unnamed/a"]))


def test_a_run_is_not_resumed_with_another_archive(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.h5")
    config = settings(path, tmp_path / "run", optimiser={"lr": 1e30})
    with pytest.raises(JobError):
        finetune(config)
    record = RunFolder.load(tmp_path / "run").record
    assert record["archive"] == Archive(path).fingerprint
    record["archive"] = "0" * 64
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"a\.h5"):
        finetune(config)


@pytest.mark.parametrize(
    "changes", [{"optimiser": {"lr": 0.01, "clip_norm": 1.0}}, {"runtime": {"precision": "bf16"}}]
)
def test_clipping_and_bfloat16_learn(archive_file: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = finetune(settings(archive_file, tmp_path / "run", schedule={"steps": 20}, **changes))
    losses = [line["loss"] for line in folder.metrics() if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_stop_on_request_saves_and_resumes_with_the_same_numbers(
    archive_file: Path, tmp_path: Path
) -> None:
    schedule = {"steps": 6}
    finetune(settings(archive_file, tmp_path / "whole", schedule=schedule, validate_every=2))
    config = settings(archive_file, tmp_path / "stopped", schedule=schedule, validate_every=2)
    for step in (1, 2, 3):
        request_stop("preempted")
        try:
            with pytest.raises(StopRequested) as stop:
                finetune(config)
        finally:
            clear_stop()
        assert f"step {step};" in stop.value.hint
        record = RunFolder.load(config.run).record
        assert (record["status"], record["error"]) == ("stopped", "preempted")
    finetune(config)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert models[0] == models[1]


def test_recomputed_activations_and_checkpoints_by_the_clock(archive_file: Path, tmp_path: Path) -> None:
    """The keys mean the same as in pretraining."""
    finetune(settings(archive_file, tmp_path / "plain"))
    changes = {
        "runtime": {"device": "cpu", "threads": 1, "activation_checkpointing": True},
        "checkpoint": {"every_steps": 6, "every_minutes": 1e-9, "keep": 10},
    }
    folder = finetune(settings(archive_file, tmp_path / "recomputed", **changes))
    assert folder.checkpoints.steps() == [1, 2, 3, 4, 5, 6]
    assert metrics(tmp_path / "plain") == metrics(folder.path)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "recomputed")]
    assert models[0] == models[1]
    assert {"gradient_norm", "memory_mb", "checkpoint_seconds"} <= folder.metrics()[-2].keys()

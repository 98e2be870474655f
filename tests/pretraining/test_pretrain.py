"""Whole pretrainings: what a step computes, what is written and logged, and what else can be chosen."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pscl_hpc.archive import Archive
from pscl_hpc.errors import UserError
from pscl_hpc.models import load_trunk
from pscl_hpc.pretraining import PretrainTask, make_views, pretrain
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.seeding import Draws
from pscl_hpc.training import Loop, Ranks
from tests.helpers import small_config
from tests.pretraining.products import values


def test_run_folder_holds_what_is_promised(archive: Path, tmp_path: Path) -> None:
    folder = pretrain(small_config(archive, tmp_path / "run"))
    assert folder.done
    names = {path.name for path in folder.path.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "trunk.safetensors", "inspection.npz"} <= names
    assert [line["step"] for line in values(folder.path)] == [1, 2, 3, 4, 5, 6]
    assert {"scale0/loss", "scale2/purity", "image/loss", "lr"} <= values(folder.path)[0].keys()
    assert folder.checkpoints.steps() == [4, 6], "the newest two are kept"
    with np.load(folder.path / "inspection.npz", allow_pickle=False) as pictures:
        assert pictures["images"].shape[1:] == (32, 32)
        assert pictures["pca2"].shape[1:] == (32, 32, 3)
        assert pictures["patches0"].shape[1:] == (6, 2)
    record = json.loads((folder.path / "run.json").read_text())
    assert record["status"] == "done"
    assert record["attempts"][0]["versions"]["torch"]
    with Archive(archive) as opened:
        assert record["archive"] == opened.fingerprint


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_step_takes_the_mean_of_its_batches_and_no_more_than_the_norm(
    archive: Path, tmp_path: Path, clip: float
) -> None:
    changes = {"batch_size": 4, "accumulate": 2, "method": {"name": "simclr"}}
    config = small_config(archive, tmp_path / "run", **changes, optimiser={"clip_norm": clip})
    cpu, losses = torch.device("cpu"), []
    with Archive(archive) as opened:
        task = PretrainTask(config, opened, Ranks.alone(cpu))
        loop = Loop(task, RunFolder.start(config, cpu), Ranks.alone(cpu))
        data, method = task.dataset, copy.deepcopy(task.module).train()
        loop.optimiser = torch.optim.SGD([{"params": task.module.parameters(), "base_lr": 0.5}], lr=0.5)
        values = loop.step([data[0], data[1]], measure=True)
        for number in (0, 1):
            views = make_views(data[number], config, number, cpu)
            loss = method(views, Draws(config.seed, number, data[number].slots.places), False).loss
            loss.backward()  # adds to the gradient of the other batch
            losses.append(float(loss.detach()))
    assert values["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    pairs = [
        (old.detach().double(), old.grad.double() / 2, new.detach().double())
        for old, new in zip(method.parameters(), task.module.parameters(), strict=True)
        if old.grad is not None
    ]
    norm = math.sqrt(sum(float(mean.square().sum()) for _, mean, _ in pairs))
    assert norm > 0.1
    assert values["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    for old, mean, new in pairs:
        update = -0.5 * mean * (clip / norm if clip else 1.0)
        torch.testing.assert_close(new - old, update, rtol=1e-3, atol=1e-6)


def test_simclr_needs_no_annotation(archive: Path, tmp_path: Path) -> None:
    config = small_config(
        archive, tmp_path / "run", method={"name": "simclr"}, data={"archive": str(archive)}
    )
    assert isinstance(config, PretrainConfig)
    folder = pretrain(config)
    with np.load(folder.path / "inspection.npz", allow_pickle=False) as pictures:
        assert "patches0" not in pictures
        assert pictures["references"] == 0


def test_colour_and_non_square_windows_with_two_references(archive: Path, tmp_path: Path) -> None:
    method = {"name": "pscl-simclr", "reference": {"ids": ["alloy/0", "alloy/1"], "per_batch": 2}}
    changes = {
        "model": {"widths": [4, 8, 8], "in_channels": 3},
        "views": {"size": [24, 56]},
        "method": method,
    }
    folder = pretrain(small_config(archive, tmp_path / "run", schedule={"steps": 2}, **changes))
    assert load_trunk(folder.path).config.in_channels == 3
    with np.load(folder.path / "inspection.npz", allow_pickle=False) as pictures:
        assert pictures["references"] == 2
        assert pictures["images"].shape[1:] == (24, 56)
        assert tuple(pictures["grid0"]) == (12, 28)


def test_bfloat16_trains_close_to_full_precision(archive: Path, tmp_path: Path) -> None:
    full = pretrain(small_config(archive, tmp_path / "fp32", schedule={"steps": 2}))
    half = pretrain(
        small_config(
            archive, tmp_path / "bf16", schedule={"steps": 2}, runtime={"threads": 1, "precision": "bf16"}
        )
    )
    first, other = values(full.path)[0], values(half.path)[0]
    assert first["image/loss"] != other["image/loss"]
    assert other["image/loss"] == pytest.approx(first["image/loss"], rel=0.02)


def test_what_is_not_wanted_is_not_logged(archive: Path, tmp_path: Path) -> None:
    config = {"schedule": {"steps": 1}, "log": {"every_steps": 1, "similarity": False, "purity": False}}
    folder = pretrain(small_config(archive, tmp_path / "run", **config))
    [line] = values(folder.path)
    assert {"scale0/loss", "scale0/templates"} <= line.keys()
    assert not {key for key in line if key.endswith(("/positive", "/negative", "/purity"))}


def test_what_core_restored_can_be_looked_at(archive: Path, tmp_path: Path) -> None:
    config = small_config(archive, tmp_path / "run", method={"name": "core"}, data={"archive": str(archive)})
    assert isinstance(config, PretrainConfig)
    with np.load(pretrain(config).path / "inspection.npz", allow_pickle=False) as pictures:
        shown = [pictures[f"picture-{name}"] for name in ("original", "corrupted", "restored by the network")]
        assert all(picture.shape == pictures["images"].shape for picture in shown)
        changed = shown[0] != shown[1]
        # Blocks are hidden, not whole images, and the network makes something else of both.
        assert 0 < changed.mean() < 0.9
        assert (shown[2] != shown[0]).any()
        assert (shown[2] != shown[1]).any()


def test_another_runs_trunk_is_trained_further(archive: Path, tmp_path: Path) -> None:
    first = pretrain(small_config(archive, tmp_path / "first", schedule={"steps": 2}))
    further = small_config(archive, tmp_path / "second", pretrained=str(first.path), schedule={"steps": 1})
    with Archive(archive) as opened:
        trunk = PretrainTask(further, opened, Ranks.alone(torch.device("cpu"))).module.trunk
    stored = load_trunk(first.path).state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in trunk.state_dict().items())
    pretrain(further)
    assert load_trunk(tmp_path / "second").config == trunk.config


def test_a_trunk_of_another_model_is_refused(archive: Path, tmp_path: Path) -> None:
    first = pretrain(small_config(archive, tmp_path / "first", schedule={"steps": 1}))
    for changes, named in (
        ({"pretrained": str(first.path), "model": {"widths": [4, 8, 8, 12]}}, r"first.*model\.widths"),
        ({"pretrained": str(tmp_path / "none")}, "none"),
    ):
        with pytest.raises(UserError, match=named):
            pretrain(small_config(archive, tmp_path / "second", **changes))
    assert not (tmp_path / "second").exists()

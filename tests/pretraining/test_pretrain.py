"""Whole pretrainings: determinism, resume after a kill, refusals."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive.windows import covering_square, draw_window, restrict
from pscl_hpc.config import PretrainConfig, to_yaml
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.models import load_trunk
from pscl_hpc.pretraining import PretrainData, Trainer, pretrain
from pscl_hpc.pretraining import trainer as trainer_module
from pscl_hpc.pretraining.notices import notices
from pscl_hpc.runs import RunFolder
from pscl_hpc.seeding import Draws, numpy_generator
from pscl_hpc.training import Ranks
from tests.helpers import CLASSES, micrograph, small_archive, small_config


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("archive") / "small.h5")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_trunk(run).state_dict())


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def values(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    changing = ("time", "images_per_second", "memory_mb", "checkpoint_seconds")
    return [{key: value for key, value in line.items() if key not in changing} for line in lines]


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
        assert pictures["cells0"].shape[1:] == (6, 2)
    record = json.loads((folder.path / "run.json").read_text())
    assert record["status"] == "done"
    assert record["attempts"][0]["versions"]["torch"]
    with Archive(archive) as opened:
        assert record["archive"] == opened.fingerprint


def test_same_seed_same_numbers_other_seed_other_numbers(archive: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain(small_config(archive, tmp_path / name, seed=seed))
    assert values(tmp_path / "a") == values(tmp_path / "b")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert values(tmp_path / "a") != values(tmp_path / "c")


def test_reading_processes_change_nothing(archive: Path, tmp_path: Path) -> None:
    pretrain(small_config(archive, tmp_path / "here", schedule={"steps": 2}))
    pretrain(
        small_config(archive, tmp_path / "there", schedule={"steps": 2}, runtime={"threads": 1, "workers": 1})
    )
    assert_same(weights(tmp_path / "here"), weights(tmp_path / "there"))


def test_killed_and_resumed_equals_uninterrupted(archive: Path, tmp_path: Path) -> None:
    whole = small_config(archive, tmp_path / "whole", schedule={"steps": 40}, log={"every_steps": 5})
    pretrain(whole)
    broken = small_config(archive, tmp_path / "broken", schedule={"steps": 40}, log={"every_steps": 5})
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(broken))
    command = [sys.executable, "-m", "pscl_hpc.cli", "pretrain", "--config", str(file)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoints = tmp_path / "broken" / "checkpoints"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(checkpoints.glob("step-*.pt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(checkpoints.glob("step-*.pt"))
    assert not (tmp_path / "broken" / "trunk.safetensors").exists(), "killed too late to test anything"
    folder = pretrain(broken)
    assert len(folder.record["attempts"]) == 2
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert values(tmp_path / "whole") == values(tmp_path / "broken")


def test_resume_forgets_log_lines_after_the_checkpoint(archive: Path, tmp_path: Path) -> None:
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    expected = values(folder.path)
    (folder.path / "checkpoints" / "step-00000006.pt").unlink()
    folder.update(status="running")
    with (folder.path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 7, "loss"')
    pretrain(config)
    assert values(folder.path) == expected


def test_a_damaged_checkpoint_is_passed_over(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    expected = weights(folder.path)
    newest = folder.path / "checkpoints" / "step-00000006.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    folder.update(status="running")
    pretrain(config)
    assert re.search(r"step-00000006\.pt.*checksum.*\n", capsys.readouterr().err)
    assert_same(expected, weights(folder.path))


def test_a_run_without_a_whole_checkpoint_loses_no_line(archive: Path, tmp_path: Path) -> None:
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    folder.update(status="running")
    for path in (folder.path / "checkpoints").glob("step-*.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no other checkpoint is whole; .* to begin anew"):
        pretrain(config)
    assert len(values(folder.path)) == 6


def test_a_finished_run_is_left_alone(archive: Path, tmp_path: Path) -> None:
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    stamp = (folder.path / "trunk.safetensors").stat().st_mtime_ns
    assert pretrain(config).done
    assert (folder.path / "trunk.safetensors").stat().st_mtime_ns == stamp


def test_another_configuration_is_refused(archive: Path, tmp_path: Path) -> None:
    pretrain(small_config(archive, tmp_path / "run"))
    with pytest.raises(UserError, match=r"another configuration \(batch_size is 3 there, 2 now\)"):
        pretrain(small_config(archive, tmp_path / "run", batch_size=2))


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    archive = small_archive(tmp_path / "a.h5")
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    folder.update(status="running")
    archive.unlink()
    small_archive(archive, images=5)
    with pytest.raises(UserError, match="has changed since this run began"):
        pretrain(config)


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_step_takes_the_mean_of_its_parts_and_no_more_than_the_norm(
    archive: Path, tmp_path: Path, clip: float
) -> None:
    optimiser = {"name": "lars", "lr": 0.5, "clip_norm": clip}
    changes = {"batch_size": 4, "accumulate": 2, "method": {"name": "simclr"}, "optimiser": optimiser}
    config, cpu = small_config(archive, tmp_path / "run", **changes), torch.device("cpu")
    losses = []
    with Archive(archive) as opened:
        data = PretrainData(opened, config)
        trainer = Trainer(config, data, RunFolder.start(config, cpu), Ranks.alone(cpu))
        method = copy.deepcopy(trainer.method).train()
        terms = trainer.step([data[0], data[1]], measure=True)
        for number in (0, 1):
            views = trainer_module.make_views(data[number], config, number, cpu)
            loss = method(views, Draws(config.seed, number, data[number].slots.places), False).loss
            loss.backward()  # adds to the gradient of the other part
            losses.append(float(loss.detach()))
    assert terms["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    pairs = [
        (old.detach().double(), old.grad.double() / 2, new.detach().double())
        for old, new in zip(method.parameters(), trainer.method.parameters(), strict=True)
        if old.grad is not None
    ]
    norm = math.sqrt(sum(float(mean.square().sum()) for _, mean, _ in pairs))
    assert norm > 0.1
    if clip:
        assert terms["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    for old, mean, new in pairs:
        if old.ndim == 1:  # of these lars takes the plain step
            update = -0.5 * mean * (clip / norm if clip else 1.0)
            torch.testing.assert_close(new - old, update, rtol=1e-3, atol=1e-6)


def test_both_views_have_intensity_changes_of_their_own(archive: Path, tmp_path: Path) -> None:
    jitter = {"brightness": 0.4, "contrast": 0.0, "probability": 1.0}
    views = {"size": [32, 32], "flip": False, "rotate": False, "crop": 0.0, "jitter": jitter}
    config = small_config(archive, tmp_path / "run", views=views)
    with Archive(archive) as opened:
        batch = PretrainData(opened, config)[0]
    made = trainer_module.make_views(batch, config, 0, torch.device("cpu"))
    dark = batch.images * (batch.images < 0.7)  # what cannot reach 1, times the factor that is looked for
    factors = torch.stack(
        [(view * (batch.images < 0.7)).sum(dim=(1, 2, 3)) for view in (made.query, made.key)]
    )
    factors /= dark.sum(dim=(1, 2, 3))
    assert len(set(factors.flatten().round(decimals=3).tolist())) == factors.numel() == 8
    assert 0.6 <= float(factors.min()) < 0.95
    assert 1.05 < float(factors.max()) <= 1.4


@pytest.mark.parametrize("in_pool", [False, True])
def test_order_visits_every_image_once_an_epoch(archive: Path, tmp_path: Path, in_pool: bool) -> None:
    method = {"name": "pscl-simclr", "reference": {"ids": ["alloy/0"], "in_pool": in_pool}}
    config = small_config(archive, tmp_path / "run", batch_size=1, method=method)
    with Archive(archive) as opened:
        data = PretrainData(opened, config)
        ids = [image for number in range(len(data.records)) for image in data[number].ids[1:]]
    assert len(data.records) == (6 if in_pool else 5)
    assert ("alloy/0" in ids) == in_pool
    assert sorted(ids) == sorted(record.id for record in data.records)


@pytest.mark.parametrize("batch_size", [2, 3, 4])
def test_no_image_is_twice_in_an_epoch_of_whole_passes(
    archive: Path, tmp_path: Path, batch_size: int
) -> None:
    config = small_config(archive, tmp_path / "run", batch_size=batch_size)
    with Archive(archive) as opened:
        data = PretrainData(opened, config)
    passes, seen = 5 // batch_size, set()
    assert len(data.records) == 5
    for epoch in range(20):
        numbers = range(epoch * passes, (epoch + 1) * passes)
        ids = [image for number in numbers for image in data.ids(number)[1:]]
        assert len(set(ids)) == len(ids) == passes * batch_size
        seen |= set(ids)
    assert seen == {record.id for record in data.records}, "none is left out for ever"


@pytest.mark.parametrize("side", [0, 40])
@pytest.mark.parametrize("crop", ["covering", "random"])
def test_the_window_of_a_reference_shows_the_most_classes(tmp_path: Path, crop: str, side: int) -> None:
    mask = np.zeros((60, 70), np.uint8)
    mask[10:16, 5:45], mask[20:50, 30:36], mask[40:45, 8:20], mask[30:60, 50:] = 1, 2, 3, 4
    pixels = np.random.default_rng(1).integers(0, 256, mask.shape).astype(np.uint8)
    path = tmp_path / "a.h5"
    with ShardWriter(path, [Collection("alloy", (*"abcde",), ignore_classes=(4,))]) as writer:
        for name in ("ref", "other", "third"):
            writer.add(pixels, id=f"alloy/{name}", dataset="alloy", mask=mask, split="train")
    reference = {"ids": ["alloy/ref"], "crop": crop, "square": side}
    method = {"name": "pscl-simclr", "reference": reference}
    config = small_config(path, tmp_path / "run", batch_size=2, views={"size": [24, 24]}, method=method)
    best = []
    with Archive(path) as opened:
        data, record = PretrainData(opened, config), opened.find("alloy/ref")
        region = covering_square(mask, (0, 1, 2, 3), side) if side else (0, 0, *mask.shape)
        annotated = restrict(mask, (0, 0, *mask.shape), region)
        for number in range(8):
            random = numpy_generator(config.seed, "windows", number, 0)
            windows = [draw_window(record, (24, 24), random, region) for _ in range(16)]
            scores = []
            for top, left, height, width in windows:
                part = annotated[top : top + height, left : left + width]
                counts = [int((part == index).sum()) for index in range(4)]
                scores.append((4 - counts.count(0), min(filter(None, counts), default=0)))
            best.append(scores.index(max(scores)) if crop == "covering" else 0)
            top, left, height, width = windows[best[-1]]
            inside = np.s_[top : top + height, left : left + width]
            batch = data[number]
            np.testing.assert_array_equal((batch.images[0, 0] * 255).round(), pixels[inside])
            np.testing.assert_array_equal(batch.labels[0], annotated[inside])
    assert crop == "random" or len(set(best)) > 4


def test_loss_that_is_not_finite_stops_the_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = trainer_module.make_views

    def poisoned(batch, config, number, device):  # type: ignore[no-untyped-def]
        views = make(batch, config, number, device)
        if number == 3:
            views.query[1] = math.nan
        return views

    monkeypatch.setattr(trainer_module, "make_views", poisoned)
    config = small_config(archive, tmp_path / "run")
    mend = r"in a new folder \(run=\.\.\.\); the checkpoint of step 2 stays in "
    with pytest.raises(JobError, match=r"not finite at step 4 \(loss=nan.*images: alloy/0, .*" + mend):
        pretrain(config)
    with pytest.raises(JobError, match=r"clip_norm=1 in a new folder \(run=\.\.\.\)$"):
        pretrain(small_config(archive, tmp_path / "other", checkpoint={"every_steps": 6}))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "step 4" in record["error"]
    monkeypatch.undo()
    assert pretrain(config).done, "the run goes on from its last checkpoint"


def _references(*ids: str) -> dict[str, object]:
    return {"name": "pscl-simclr", "reference": {"ids": list(ids)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": _references("alloy/9")}, "no image 'alloy/9'"),
        ({"method": _references("other/0")}, "other/0 has no mask"),
        ({"method": _references("alloy/5")}, "alloy/5 is in the split 'val'"),
        ({"data": {"archive": "ARCHIVE", "splits": ["trian"]}}, "is in the splits"),
        ({"data": {"archive": "ARCHIVE", "datasets": ["aloy"]}}, "did you mean 'alloy'"),
        ({"data": {"archive": "nowhere.h5"}}, "nowhere.h5"),
        ({"runtime": {"device": "cuda"}}, "no GPU"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    archive: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    text = json.loads(json.dumps(changes).replace("ARCHIVE", str(archive)))
    if torch.cuda.is_available() and "runtime" in changes:
        return
    with pytest.raises(UserError) as caught:
        pretrain(small_config(archive, tmp_path / "run", **text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_reference_of_an_excluded_specimen_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "specimens.h5"
    with ShardWriter(path, [Collection("alloy", CLASSES, 0)]) as writer:
        for index in range(4):
            image, mask = micrograph(index, (40, 40))
            name = f"alloy/{index}"
            writer.add(image, id=name, dataset="alloy", mask=mask, split="train", specimen=f"s{index}")
    with Archive(path) as opened:
        for specimen, refused in (("s0", True), ("s1", False)):
            data = {"archive": str(path), "exclude_specimens": [specimen]}
            config = small_config(path, tmp_path / "run", data=data, batch_size=2)
            if refused:
                with pytest.raises(UserError, match="alloy/0 is of the specimen s0"):
                    PretrainData(opened, config)
            else:
                assert [record.id for record in PretrainData(opened, config).records] == [
                    "alloy/2",
                    "alloy/3",
                ]


def test_simclr_needs_no_annotation(archive: Path, tmp_path: Path) -> None:
    config = small_config(
        archive, tmp_path / "run", method={"name": "simclr"}, data={"archive": str(archive)}
    )
    assert isinstance(config, PretrainConfig)
    folder = pretrain(config)
    with np.load(folder.path / "inspection.npz", allow_pickle=False) as pictures:
        assert "cells0" not in pictures
        assert pictures["references"] == 0


def test_a_pool_smaller_than_the_batch_is_told(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Archive(archive) as opened:
        images = len(opened.select(splits=["train", ""]))
    config = {"method": {"name": "simclr"}, "data": {"archive": str(archive)}, "schedule": {"steps": 1}}
    pretrain(small_config(archive, tmp_path / "few", batch_size=images + 1, **config))
    assert f"set batch_size={images}" in capsys.readouterr().err
    pretrain(small_config(archive, tmp_path / "enough", batch_size=images, **config))
    assert capsys.readouterr().err == ""


def test_learning_from_scored_images_is_told(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"method": {"name": "simclr"}, "schedule": {"steps": 1}}
    data = {"archive": str(archive), "splits": ["train", "", "val"]}
    pretrain(small_config(archive, tmp_path / "all", data=data, **config))
    said = capsys.readouterr().err
    assert said.startswith("warning: data.splits puts images of val into the pool")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": {"size": [34, 34]}}, "multiple of 4; set views.size=[32, 32]"),
        ({"views": {"size": [32, 48]}}, "multiple of 4; set views.size=[32, 32]"),
        ({"views": {"size": [36, 36]}}, ""),
        (
            {"views": {"size": [36, 36]}, "method": {"name": "ideal"}},
            "multiple of 8; set views.size=[32, 32]",
        ),
        ({"views": {"size": [34, 34]}, "method": {"name": "ideal", "correspondence": "feature"}}, ""),
        ({"views": {"size": [34, 48]}, "method": {"name": "simclr"}}, ""),
        ({"schedule": {"steps": 3, "warmup_steps": 3}}, "learning rate never reaches optimiser.lr"),
        ({"schedule": {"steps": 3, "warmup_steps": 2}}, ""),
    ],
)
def test_what_is_hardly_meant_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    found = notices(small_config(tmp_path / "a.h5", tmp_path / "run", **changes), ["train"] * 5)
    assert len(found) == bool(said)
    assert all(said in sentence for sentence in found)


def _export_on_a_full_disk(config: PretrainConfig, pipe: Connection) -> None:
    def full(path: Path, trunk: object) -> None:
        # As full as a disk gets: no file may grow beyond this.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save(path, trunk)

    save = trainer_module.save_trunk
    trainer_module.save_trunk = full  # type: ignore[assignment]
    try:
        pretrain(config)
    except JobError as error:
        pipe.send(str(error))


def test_an_export_to_a_full_disk_is_one_sentence(archive: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    config = small_config(archive, tmp_path / "run", schedule={"steps": 1}, method={"name": "simclr"})
    process = context.Process(target=_export_on_a_full_disk, args=(config, theirs))
    process.start()
    theirs.close()
    text = ours.recv()
    process.join()
    assert text.startswith(f"{tmp_path / 'run' / 'trunk.safetensors'}: it could not be written (")
    assert text.endswith("make room there and start the run again with the same command")
    assert not RunFolder.load(config.run).done


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


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "lars"])
def test_optimisers_and_schedules_resume(archive: Path, tmp_path: Path, optimiser: str) -> None:
    changes = {
        "optimiser": {"name": optimiser, "lr": 0.01, "weight_decay": 0.01, "clip_norm": 1.0},
        "schedule": {"steps": 4, "warmup_steps": 2, "decay": "cosine"},
        "method": {"name": "simclr"},
    }
    whole = pretrain(small_config(archive, tmp_path / "whole", **changes))
    part = small_config(archive, tmp_path / "part", **changes)
    folder = pretrain(part)
    for name in ("step-00000004.pt", "step-00000004.sha256"):
        (folder.path / "checkpoints" / name).unlink()
    folder.update(status="stopped")
    pretrain(part)
    assert_same(weights(whole.path), weights(folder.path))
    rates = [line["lr"] for line in values(folder.path)]
    assert rates[0] < rates[2], "warm-up"

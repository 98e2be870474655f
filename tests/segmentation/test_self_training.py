"""Self-training and the average of the weights: labels against an oracle, the loss by hand, exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from pscl_hpc.archive import Archive
from pscl_hpc.models import load_segmentation
from pscl_hpc.segmentation import finetune
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.data import WindowDataset, select_data, select_unlabelled
from pscl_hpc.segmentation.finetune import FinetuneTask, build_net, build_objective
from pscl_hpc.segmentation.semi_supervised.self_training import SelfTrainingConfig, pseudo_labels
from pscl_hpc.training import Ranks, StopRequested, clear_stop, request_stop

from .helpers import SCRATCH, settings

CLASSES = torch.tensor([0, 1, 2])


def semi(archive: Path, run: Path, changes: dict[str, Any] | None = None, **others: Any) -> FinetuneConfig:
    section = {"name": "self-training", "batch_size": 3, "start": 0.0, "ramp": 0.0, **(changes or {})}
    return settings(archive, run, semi_supervised=section, **{"average": 0.9, **others})


def probabilities(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(dim=1)


@pytest.mark.parametrize("kept", [0.0, 0.25, 0.5, 1.0])
def test_the_most_confident_share_of_each_class_has_labels(kept: float) -> None:
    probability = probabilities(0, 2, 3, 40, 40)
    found = pseudo_labels(probability, CLASSES, SelfTrainingConfig(kept=kept, certain=1.0))
    confidence, channel = probability.max(dim=1)
    for number in range(3):
        member = channel == number
        taken = member & (found == number)
        assert not bool(((found == number) & ~member).any())
        # The histogram has 1024 levels: pixels of one level are taken together.
        assert float(taken.sum() / member.sum()) == pytest.approx(kept, abs=0.03)
        if 0 < kept < 1:
            assert float(confidence[taken].min()) >= float(confidence[member & ~taken].max()) - 2 / 1024


def test_certain_pixels_have_labels_in_any_case_and_ignored_classes_none() -> None:
    probability = torch.tensor([[0.95, 0.9, 0.5, 0.2], [0.05, 0.1, 0.5, 0.8]]).view(1, 2, 2, 2)
    found = pseudo_labels(probability, torch.tensor([0, 2]), SelfTrainingConfig(kept=0.0, certain=0.9))
    assert found.tolist() == [[[0, 0], [255, 255]]]
    assert found.dtype == torch.uint8


def test_weight_starts_late_and_rises_linearly() -> None:
    config = SelfTrainingConfig(weight=2.0, start=0.5, ramp=0.25)
    assert [config.weight_at(step, 8) for step in range(8)] == [0, 0, 0, 0, 1.0, 2.0, 2.0, 2.0]
    assert SelfTrainingConfig(start=0.0, ramp=0.0).weight_at(0, 8) == 1.0


def test_it_needs_the_average_of_the_weights(archive_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="average"):
        semi(archive_file, tmp_path, average=0.0)


def test_a_step_equals_the_loss_by_hand(archive_file: Path, tmp_path: Path) -> None:
    config = semi(archive_file, tmp_path / "run", {"weight": 0.7}, jitter={"probability": 0.0})
    archive = Archive(archive_file)
    data = select_data(config, archive)
    net, average = build_net(config, 4), build_net(config.model_copy(update={"seed": 3}), 4)
    objective = build_objective(net, data, config, average)
    assert config.semi_supervised is not None
    records = select_unlabelled(config, config.semi_supervised, archive, "alloy")
    dataset = WindowDataset(
        archive, data.references, data.classes, config, trunk=config.trunk, unlabelled=records
    )
    batch = dataset[2]
    found = objective.train()(2, batch.images, batch.targets, batch.slots)
    kept = torch.tensor([0, 1, 2])
    with torch.no_grad():
        taught = average.eval()(batch.images[2:]).index_select(1, kept).softmax(1)
        labels = pseudo_labels(taught, kept, config.semi_supervised).long()  # type: ignore[arg-type]
        logits = net.train()(batch.images)
        supervised = objective.loss(logits[:2], batch.targets[:2]).total
        others = logits[2:].index_select(1, kept)
        entropy = F.cross_entropy(others, labels, ignore_index=255, reduction="sum") / labels.numel()
        probability, valid = others.softmax(1), labels != 255
        dice = []
        for number in (1, 2):
            truth = (labels == number).float()
            if truth.sum():
                p = probability[:, number] * valid
                dice.append(1 - float((2 * (p * truth).sum() + 1e-4) / (p.sum() + truth.sum() + 1e-4)))
    expected = float(supervised) + 0.7 * (0.5 * float(entropy) + 0.5 * float(np.mean(dice)))
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert float(found.terms["self/labelled"]) == pytest.approx(float(valid.float().mean()))
    assert SCRATCH not in labels
    found.total.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in average.parameters())


def test_before_the_start_it_is_supervised_training(archive_file: Path, tmp_path: Path) -> None:
    still = {"probability": 0.0}  # intensity changes are drawn for all windows together
    plain = settings(archive_file, tmp_path / "plain", average=0.9, jitter=still)
    late = semi(archive_file, tmp_path / "late", {"start": 1.0}, jitter=still)
    first, second = finetune(plain).metrics(), finetune(late).metrics()
    keys = ("loss", "ce", "dice_loss", "gradient_norm", "val/mean_dice")
    assert [[line.get(key) for key in keys] for line in first] == [
        [line.get(key) for key in keys] for line in second
    ]


def test_the_average_follows_and_is_exported(archive_file: Path, tmp_path: Path) -> None:
    config = settings(archive_file, tmp_path / "run", average=0.5, validation_split="")
    with Archive(archive_file) as archive:
        task = FinetuneTask(config, archive, Ranks.alone(torch.device("cpu")))
        assert task.average is not None
        weights = [p.detach().clone() for p in task.net.parameters()]
        with torch.no_grad():
            for parameter in task.net.parameters():
                parameter += 1
        task.after_step(1 / 6)
        for old, new in zip(weights, task.average.parameters(), strict=True):
            torch.testing.assert_close(new, old + 0.9)  # the first step keeps 1 / 10
        task.after_step(6 / 6)
        for old, new in zip(weights, task.average.parameters(), strict=True):
            torch.testing.assert_close(new, old + 0.9 + 0.1 * 0.6)  # step 6 of 6: 6 / 15
    run = finetune(config)
    state = run.checkpoints.load_latest()
    assert state is not None
    exported = load_segmentation(run.path)[0].state_dict()
    assert all(torch.equal(exported[key], state["average"][key]) for key in exported)
    assert any(not torch.equal(exported[key], state["model"][key]) for key in exported)


def test_a_run_resumes_exactly(archive_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finetune(semi(archive_file, tmp_path / "whole"))
    config = semi(archive_file, tmp_path / "parts")
    after_step = FinetuneTask.after_step

    def stop(task: FinetuneTask, progress: float) -> None:
        after_step(task, progress)
        if progress == 0.5:
            request_stop("test")

    monkeypatch.setattr(FinetuneTask, "after_step", stop)
    with pytest.raises(StopRequested):
        finetune(config)
    clear_stop()
    monkeypatch.setattr(FinetuneTask, "after_step", after_step)
    parts = finetune(config)
    keys = ("loss", "self/labelled", "val/mean_dice")
    assert [[line.get(key) for key in keys] for line in parts.metrics()] == [
        [line.get(key) for key in keys] for line in whole.metrics()
    ]
    first, second = (load_segmentation(run.path)[0].state_dict() for run in (whole, parts))
    assert all(torch.equal(first[key], second[key]) for key in first)

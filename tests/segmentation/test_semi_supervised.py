"""Cross-consistency of two decoders: the loss against an oracle, the data, the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from pscl_hpc.archive import Archive
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.models import load_segmentation
from pscl_hpc.models.unet import UNetConfig
from pscl_hpc.segmentation import finetune
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.data import WindowDataset, select_data, select_unlabelled
from pscl_hpc.segmentation.finetune import build_net, build_objective, optimiser_groups
from pscl_hpc.segmentation.semi_supervised.cross_consistency import (
    CrossConsistency,
    CrossConsistencyConfig,
    consistency_weight,
    cross_consistency,
    pseudo_labels,
)

from .helpers import SCRATCH, settings
from .test_finetune import metrics


def semi(archive: Path, run: Path, changes: dict[str, Any] | None = None, **others: Any) -> FinetuneConfig:
    return settings(archive, run, semi_supervised={"batch_size": 3, "ramp": 0.0, **(changes or {})}, **others)


def dataset(config: FinetuneConfig, archive: Archive, rank: int = 0, ranks: int = 1) -> WindowDataset:
    data = select_data(config, archive)
    assert config.semi_supervised is not None
    records = select_unlabelled(config, config.semi_supervised, archive, data.collection.name)
    return WindowDataset(
        archive,
        data.references,
        data.classes,
        config,
        trunk=UNetConfig(),
        unlabelled=records,
        rank=rank,
        ranks=ranks,
    )


def logits(seed: int, *shape: int, scale: float = 4.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("threshold", [0.0, 0.8, 1.0])
def test_cross_consistency_equals_the_oracle(threshold: float) -> None:
    first, second = logits(0, 2, 3, 4, 5), logits(1, 2, 3, 4, 5)
    total, confident = 0.0, 0
    for image in range(2):
        for row in range(4):
            for col in range(5):
                p, q = (x[image, :, row, col].softmax(0).tolist() for x in (first, second))
                for taught, teacher in ((p, q), (q, p)):
                    if max(teacher) >= threshold:
                        total -= math.log(taught[teacher.index(max(teacher))])
                        confident += 1
    found = cross_consistency(first, second, threshold)
    assert float(found.loss) == pytest.approx(total / 40, rel=1e-10)
    assert float(found.confident) == pytest.approx(confident / 80)
    assert (confident == 0) == (threshold == 1.0)


def test_a_pseudo_label_has_no_gradient() -> None:
    first, second = (logits(seed, 2, 3, 4, 5).requires_grad_() for seed in (0, 1))
    cross_consistency(first, second, 0.6).loss.backward()
    # With the labels held fixed the gradient is that of an ordinary cross entropy.
    for own, other in ((first, second), (second, first)):
        fixed = own.detach().clone().requires_grad_()
        label = pseudo_labels(other.detach(), 0.6)
        (F.cross_entropy(fixed, label, ignore_index=255, reduction="sum") / 40).backward()
        torch.testing.assert_close(own.grad, fixed.grad)
    assert not pseudo_labels(first, 0.6).requires_grad


def test_weight_rises_to_its_value_and_stays() -> None:
    config = CrossConsistencyConfig(weight=2.0, ramp=0.5)
    weights = [consistency_weight(config, step, 20) for step in range(20)]
    assert weights[0] == pytest.approx(2 * math.exp(-5))
    assert weights == sorted(weights)
    assert weights[10:] == [2.0] * 10
    assert consistency_weight(CrossConsistencyConfig(ramp=0.0), 0, 20) == 1.0


def make_objective(archive_file: Path, tmp_path: Path, **changes: Any) -> tuple[CrossConsistency, Any]:
    config = semi(archive_file, tmp_path / "run", changes, jitter={"probability": 0.0})
    archive = Archive(archive_file)
    data = select_data(config, archive)
    objective = build_objective(build_net(config, 4), data, config)
    assert isinstance(objective, CrossConsistency)
    return objective.train(), dataset(config, archive)[0]


def test_a_step_equals_the_oracle(archive_file: Path, tmp_path: Path) -> None:
    objective, batch = make_objective(archive_file, tmp_path, weight=0.7, threshold=0.3)
    found = objective(3, batch.images, batch.targets)
    with torch.no_grad():
        first = objective.net(batch.images)
        second = objective.second(objective.net.trunk.encode(batch.images))
    # Without jitter the annotated windows alone decide the supervised loss: the others have no targets.
    supervised = [objective.loss(x[:2], batch.targets[:2]).total for x in (first, second)]
    kept = [i for i in range(4) if i != SCRATCH]
    agreement = cross_consistency(first[:, kept].double(), second[:, kept].double(), 0.3)
    expected = sum(float(x) for x in supervised) + 0.7 * float(agreement.loss)
    assert float(agreement.confident) > 0
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(found.terms["consistency/loss"].detach()) == pytest.approx(float(agreement.loss), rel=1e-5)
    assert float(found.terms["consistency/confident"]) == pytest.approx(float(agreement.confident), abs=1e-3)


def test_without_weight_it_is_the_training_of_two_decoders(archive_file: Path, tmp_path: Path) -> None:
    objective, batch = make_objective(archive_file, tmp_path, weight=0.0, threshold=0.0)
    objective(0, batch.images, batch.targets).total.backward()
    found = {name: weight.grad.clone() for name, weight in objective.named_parameters()}
    objective.zero_grad()
    first = objective.net(batch.images)
    second = objective.second(objective.net.trunk.encode(batch.images))
    (objective.loss(first, batch.targets).total + objective.loss(second, batch.targets).total).backward()
    for name, weight in objective.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, msg=name)


def test_both_decoders_see_their_own_perturbation(archive_file: Path, tmp_path: Path) -> None:
    config = semi(archive_file, tmp_path / "run")
    archive = Archive(archive_file)
    objective = build_objective(
        build_net(config, 4), select_data(config, archive), config, config.semi_supervised
    )
    images = dataset(config, archive)[0].images
    first, second = objective.perturbed(images, 4), objective.perturbed(images, 4, purpose="second jitter")
    assert not torch.equal(first, second)
    assert torch.equal(first, objective.perturbed(images, 4))
    assert not torch.equal(first, objective.perturbed(images, 5))


def test_unlabelled_windows_come_without_their_masks(archive_file: Path, tmp_path: Path) -> None:
    archive = Archive(archive_file)
    config = semi(archive_file, tmp_path / "run", {"batch_size": 6})
    mixed = dataset(config, archive)
    supervised = config.model_copy(update={"semi_supervised": None})
    plain = WindowDataset(archive, mixed.references, mixed.classes, supervised, trunk=UNetConfig())
    ids = set()
    for step in range(6):
        batch, again = mixed[step], dataset(config, archive)[step]
        assert all(torch.equal(a, b) for a, b in zip(batch[:2], again[:2], strict=True))
        assert batch.images.shape == (8, 1, 32, 32)
        assert torch.equal(batch.images[:2], plain[step].images)
        assert torch.equal(batch.targets[:2], plain[step].targets)
        assert bool((batch.targets[2:] == 255).all())
        assert len({np.asarray(image).tobytes() for image in batch.images[2:]}) == 6
        ids |= set(batch.ids[2:])
    assert ids == {"alloy/train0", "alloy/train1", "alloy/bare", "alloy/blank"}


@pytest.mark.parametrize(
    ("changes", "data", "named"),
    [
        ({"splits": ["train", "val"]}, {}, ("semi_supervised.splits", "'val'")),
        ({"splits": ["test_ood"]}, {}, ("semi_supervised.splits", "'test_ood'")),
        ({}, {"splits": ["train", "test"]}, ("data.splits", "'test'")),
        ({"splits": [""]}, {}, ("'alloy'", "['']", "semi_supervised.splits")),
        ({"splits": ["train", "pol"]}, {}, ("semi_supervised.splits", "'pol'")),
        ({"splits": ["trian", "train"]}, {}, ("'trian'", "'train'")),
        ({"splits": ["trian"]}, {}, ("semi_supervised.splits", "'trian'")),
        ({"datasets": ["aloy"]}, {}, ("'alloy'",)),
    ],
)
def test_images_that_score_the_result_are_refused(
    archive_file: Path, tmp_path: Path, changes: dict[str, Any], data: dict[str, Any], named: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        finetune(semi(archive_file, tmp_path / "run", changes, data={"archive": str(archive_file), **data}))
    assert all(word in str(caught.value) for word in named)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_validation_split_of_another_name_is_refused_too(archive_file: Path, tmp_path: Path) -> None:
    config = semi(archive_file, tmp_path / "run", validation_split="held")
    assert config.semi_supervised is not None
    chosen = config.semi_supervised.model_copy(update={"splits": ("train", "held")})
    with pytest.raises(UserError, match="'held'"):
        select_unlabelled(config, chosen, Archive(archive_file), "alloy")


def test_other_collections_and_left_out_specimens(archive_file: Path, tmp_path: Path) -> None:
    archive = Archive(archive_file)
    config = semi(
        archive_file,
        tmp_path / "run",
        {"datasets": ["alloy", "unnamed"]},
        data={"archive": str(archive_file), "exclude_specimens": ["s1"]},
    )
    assert config.semi_supervised is not None
    found = select_unlabelled(config, config.semi_supervised, archive, "alloy")
    assert {record.id for record in found} == {"alloy/train0", "alloy/bare", "alloy/blank", "unnamed/a"}


def test_a_run_learns_resumes_and_writes_the_trunks_decoder_alone(archive_file: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "schedule": {"steps": 12},
        "validate_every": 4,
        "checkpoint": {"every_steps": 4},
    }
    whole = finetune(semi(archive_file, tmp_path / "whole", {"threshold": 0.4}, **changes))
    lines = [line for line in metrics(whole.path) if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"ce", "dice_loss", "second/loss", "consistency/loss", "consistency/weight"} <= lines[0].keys()
    net, _ = load_segmentation(whole.path)
    assert not any("second" in name for name in net.state_dict())
    stored = whole.checkpoints.load_latest()
    assert stored is not None
    assert any(name.startswith("second.") for name in stored["extra"])

    part = semi(archive_file, tmp_path / "part", {"threshold": 0.4}, **changes)
    folder = finetune(part)
    for name in ("step-00000012.pt", "step-00000012.sha256"):
        (folder.path / "checkpoints" / name).unlink()
    (folder.path / "model.safetensors").unlink()
    folder.update(status="stopped")
    finetune(part)
    model = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert model[0] == model[1]
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "part")


def test_every_weight_is_trained_once(archive_file: Path, tmp_path: Path) -> None:
    objective, _ = make_objective(archive_file, tmp_path)
    groups = optimiser_groups(objective.net, objective.config, objective.extra)
    trained = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(trained) == sorted(id(weight) for weight in objective.parameters())


def test_a_loss_that_is_not_finite_names_its_parts(archive_file: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"step 2 .*ce=.*consistency/loss=.* alloy/"):
        finetune(semi(archive_file, tmp_path / "run", optimiser={"lr": 1e30}))


def test_unknown_scheme_is_refused(archive_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="ideal"):
        semi(archive_file, tmp_path / "run", {"name": "mean-teacher"})

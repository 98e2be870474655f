"""Pretraining measures its features: the nearest-neighbour probe and the rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.models import Features, Trunk, build_trunk
from pscl_hpc.pretraining import PretrainData, pretrain
from pscl_hpc.pretraining.probe import FeatureProbe, neighbour_votes, rank_me
from pscl_hpc.report import write_report
from tests.helpers import micrograph, small_archive, small_config

CPU = torch.device("cpu")


class Shown(Trunk):
    """A trunk whose maps are its input with a constant channel, to know the answer."""

    def __init__(self, *, blind: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Identity(), nn.Identity()
        self.blind = blind

    def normalise(self, images: Tensor) -> Tensor:
        return images

    def denormalise(self, values: Tensor) -> Tensor:
        return values

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        level = torch.zeros_like(images) if self.blind else images
        return (torch.cat((torch.ones_like(level), 3 * level), dim=1),)

    def decode(self, maps: Sequence[Tensor]) -> Features:
        return Features(maps[-1], (maps[-1],))


def probe(archive: Path, **changes: Any) -> FeatureProbe:
    config = small_config(archive, Path("unused"), **{"method": {"name": "simclr"}, **changes})
    with Archive(archive) as opened:
        data = PretrainData(opened, config)
        return FeatureProbe(opened, config, data.references, data.records, CPU)


def test_levels_tell_the_class_and_a_blind_trunk_does_not(tmp_path: Path) -> None:
    found = probe(small_archive(tmp_path / "a.h5", size=(64, 64)))
    assert found.classes == [0, 1, 2]
    seeing, blind = found.measure(Shown()), found.measure(Shown(blind=True))
    assert seeing["decoder/probe"] > 0.9
    assert seeing["chance/probe"] == pytest.approx(1 / 3)
    assert blind["bottleneck/probe"] == pytest.approx(1 / 3), "one class for all pixels"
    assert 1.2 < seeing["decoder/rank"] <= 2
    assert blind["decoder/rank"] == pytest.approx(1, abs=1e-6)


def test_memory_and_queries_are_in_different_halves(tmp_path: Path) -> None:
    found = probe(small_archive(tmp_path / "a.h5", size=(64, 64)))
    (left, _), (right, _) = found._halves
    assert int(left.column.max()) < 12
    assert int(right.column.min()) >= 20


def test_a_class_that_one_half_alone_shows(tmp_path: Path) -> None:
    """Class 2 is in the right part only, where it looks as class 1 does in the left part, which is taken for it."""
    mask = np.tile(np.arange(64, dtype=np.uint8)[:, None] % 2, (1, 64))
    mask[::4, 40:] = 2
    with ShardWriter(tmp_path / "a.h5", [Collection("alloy", ("a", "b", "c"))]) as writer:
        for name in ("alloy/0", "alloy/1"):
            image = 60 + 60 * np.minimum(mask, 1)
            image[:, 40:][mask[:, 40:] == 1] += 30
            writer.add(image, mask=mask, id=name, dataset="alloy", split="train")
    found = probe(tmp_path / "a.h5", views={"size": [64, 64]})
    assert found.classes == [0, 1]
    assert found.measure(Shown())["decoder/probe"] == pytest.approx(0.75, abs=0.05)


def test_rank_of_known_matrices() -> None:
    random = torch.Generator().manual_seed(0)
    assert rank_me(torch.eye(5).repeat(3, 1)) == pytest.approx(5, rel=1e-6)
    assert rank_me(torch.ones(20, 4)) == pytest.approx(1, abs=1e-6)
    singular = torch.tensor([0.5, 0.25, 0.25])
    q, _ = torch.linalg.qr(torch.randn(10, 3, generator=random))
    assert rank_me(q * singular) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)), rel=1e-5)
    assert rank_me(torch.zeros(4, 3)) == pytest.approx(1, abs=0.01)
    assert math.isnan(rank_me(torch.full((4, 3), math.nan)))


def test_votes_by_hand() -> None:
    memory = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    told = neighbour_votes(memory, torch.tensor([2, 2, 0]), torch.tensor([[1.0, 0.0]]), 3)
    assert told.tolist() == [2]


def test_only_the_rank_without_annotation_or_with_one_class(tmp_path: Path) -> None:
    for name, mask in (
        ("plain", None),
        ("one", np.ones((48, 40), np.uint8)),
        ("unknown", np.full((48, 40), 255, np.uint8)),
    ):
        path = tmp_path / f"{name}.h5"
        with ShardWriter(path, [Collection("alloy", ("a", "b"), 0, (), ())]) as writer:
            for index in range(3):
                writer.add(
                    micrograph(index, (48, 40))[0],
                    id=f"alloy/{index}",
                    dataset="alloy",
                    mask=mask,
                    split="train",
                )
        assert probe(path).measure(Shown()).keys() == {"bottleneck/rank", "decoder/rank"}, name


def test_validation_images_and_excluded_specimens_are_never_read(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with ShardWriter(path, [Collection("alloy", ("a", "b", "c"), 0, (), ())]) as writer:
        for index, (split, specimen) in enumerate((("train", "s1"), ("val", "s2"), ("train", "s3"))):
            image, mask = micrograph(index, (48, 40))
            masked = None if index == 0 else mask
            writer.add(
                image, id=f"alloy/{index}", dataset="alloy", mask=masked, split=split, specimen=specimen
            )
    data = {"archive": str(path)}
    assert probe(path, data=data).classes
    assert not probe(path, data={**data, "exclude_specimens": ["s3"]}).classes


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_trunk_is_unchanged(tmp_path: Path, norm: str) -> None:
    archive = small_archive(tmp_path / "a.h5")
    found = probe(archive)
    config = small_config(archive, Path("unused"), model={"widths": [4, 8, 8, 16], "norm": norm})
    trunk = build_trunk(config.model)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    state = torch.get_rng_state()
    first = found.measure(trunk)
    assert first == found.measure(trunk)
    assert trunk.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


def test_it_is_logged_and_changes_no_loss(tmp_path: Path) -> None:
    archive = small_archive(tmp_path / "a.h5")
    few: dict[str, Any] = {"checkpoint": {"every_steps": 6, "keep_best": False}, "method": {"name": "simclr"}}
    on = pretrain(small_config(archive, tmp_path / "on", log={"every_steps": 4, "probe_every": 3}, **few))
    off = pretrain(small_config(archive, tmp_path / "off", log={"every_steps": 1, "probe_every": 0}, **few))
    steps = [line["step"] for line in on.metrics() if "decoder/probe" in line]
    assert steps == [1, 3, 6]
    losses = {line["step"]: line["loss"] for line in off.metrics()}
    assert all(line["loss"] == losses[line["step"]] for line in on.metrics())
    assert not any("probe" in key or "rank" in key for line in off.metrics() for key in line)
    text = write_report([on.path]).path.read_text()
    assert "How well features predict the annotation" in text
    assert "Rank of the features" in text

"""Position of a rank, batches that cannot be divided, recomputed activations, rates for large batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.archive import Archive
from pscl_hpc.config import OptimiserConfig
from pscl_hpc.errors import UserError
from pscl_hpc.models import checkpoint_blocks
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.pretraining import PretrainData
from pscl_hpc.training import read_place, scaled_lr
from tests.helpers import small_archive, small_config

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "29500",
    "PSCL_NODE": "n7",
}


def test_the_place_is_read_from_torchruns_variables() -> None:
    place = read_place(TORCHRUN)
    assert (place.rank, place.world, place.local_rank, place.local_world) == (1, 4, 1, 2)
    assert (place.address, place.port, place.node) == ("n0", 29500, "n7")
    assert not place.first
    for alone in ({}, {"RANK": "0", "WORLD_SIZE": "1"}):
        assert read_place(alone).world == 1
        assert read_place(alone).first


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"RANK": ""}, "RANK"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"RANK": "4"}, "RANK 4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK 2"),
    ],
)
def test_inconsistent_variables_are_refused(changes: dict[str, str], variable: str) -> None:
    with pytest.raises(UserError, match=f"n7: .*{variable}"):
        read_place(TORCHRUN | changes)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("archive") / "small.h5", images=12)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"batch_size": 6}, "batch_size=8.* 4"),
        ({"batch_size": 2}, "batch_size=4"),
        ({"batch_size": 4, "accumulate": 2}, "batch_size=8.* 8"),
        ({"batch_size": 4, "method": {"reference": {"per_batch": 3}}}, r"method\.reference\.per_batch=4"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(
    archive: Path, tmp_path: Path, changes: dict[str, Any], fix: str
) -> None:
    reference = {"ids": ["alloy/0"], **changes.pop("method", {}).get("reference", {"per_batch": 4})}
    method = {"name": "pscl-simclr", "reference": reference}
    config = small_config(archive, tmp_path / "run", method=method, **changes)
    with Archive(archive) as opened, pytest.raises(UserError, match=fix):
        PretrainData(opened, config, 0, 4)


def test_batch_statistics_of_one_image_are_refused(archive: Path, tmp_path: Path) -> None:
    runtime = {"device": "cpu", "sync_batchnorm": False}
    config = {"method": {"name": "byol"}, "batch_size": 4}
    alone = small_config(archive, tmp_path / "run", runtime=runtime, **config)
    together = small_config(archive, tmp_path / "run", runtime={"device": "cpu"}, **config)
    with Archive(archive) as opened:
        with pytest.raises(UserError, match=r"runtime\.sync_batchnorm=true.*batch_size=8"):
            PretrainData(opened, alone, 0, 4)
        PretrainData(opened, together, 0, 4)
        PretrainData(opened, alone, 0, 2)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_read_the_batch_of_one(archive: Path, tmp_path: Path, ranks: int) -> None:
    method = {"name": "pscl-simclr", "reference": {"ids": ["alloy/0", "alloy/1"], "per_batch": 4}}
    config = small_config(archive, tmp_path / "run", method=method, batch_size=8, accumulate=2)
    with Archive(archive) as opened:
        whole = PretrainData(opened, config)[5]
        parts = [PretrainData(opened, config, rank, ranks) for rank in range(ranks)]
        seen = {}
        for rank, data in enumerate(parts):
            batch = data[5]
            assert batch.references == 4 // ranks
            assert data.ids(5) == whole.ids
            for row, slot in enumerate(batch.slots.places):
                seen[slot] = rank
                assert batch.ids[row] == whole.ids[slot]
                assert torch.equal(batch.images[row], whole.images[slot])
                assert torch.equal(batch.labels[row], whole.labels[slot])
    assert sorted(seen) == list(range(8))
    for image in range(4):
        assert seen[4 + image] == seen[image % 4], "an image and its reference are on one rank"


def test_recomputed_activations_change_no_number() -> None:
    torch.manual_seed(0)
    plain = UNet(UNetConfig(widths=(4, 8, 8)))
    recomputed = copy.deepcopy(plain)
    checkpoint_blocks(recomputed)
    images = torch.rand(2, 1, 17, 22)
    saved = []
    for trunk in (plain, recomputed):
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            first, second = trunk(images), trunk(images.flip(2))
        sum((f.square().mean() for f in (*first.scales, *second.scales)), first.bottleneck.mean()).backward()
        saved.append(kept)
    assert saved[1] < saved[0] / 2, "activations are kept"
    for (key, wanted), found in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert wanted.grad is not None
        assert found.grad is not None
        assert torch.equal(wanted.grad, found.grad), key
    assert list(plain.state_dict()) == list(recomputed.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(value, recomputed.state_dict()[key]), key


def test_a_copy_of_recomputed_blocks_is_one_of_its_own() -> None:
    trunk = UNet(UNetConfig(widths=(4, 8)))
    checkpoint_blocks(trunk)
    other = copy.deepcopy(trunk)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    before = copy.deepcopy(trunk.state_dict())
    assert bool((other(torch.rand(2, 1, 16, 16)).bottleneck == 0).all())
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} of the other"


def test_rates_for_large_batches() -> None:
    config = OptimiserConfig(lr=0.1, lr_base_batch=256)
    assert scaled_lr(config, 1024) == 0.1
    assert scaled_lr(config.model_copy(update={"lr_scaling": "linear"}), 1024) == pytest.approx(0.4)
    assert scaled_lr(config.model_copy(update={"lr_scaling": "sqrt"}), 1024) == pytest.approx(0.2)
    assert scaled_lr(config.model_copy(update={"lr_scaling": "linear"}), 64) == pytest.approx(0.025)

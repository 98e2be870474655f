"""``accumulate=exact``: parts of a batch give the loss and the gradient of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pscl_hpc.archive import Archive
from pscl_hpc.errors import UserError
from pscl_hpc.methods import METHODS, Method
from pscl_hpc.methods.simclr import Simclr
from pscl_hpc.pretraining import PretrainData, PretrainTask, pretrain
from pscl_hpc.training import Ranks
from tests.helpers import small_archive, small_config
from tests.pretraining import rank_cases
from tests.pretraining.rank_worker import train
from tests.pretraining.ranks import assert_same_training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("archive") / "small.h5", images=12)


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Losses, gradients and state of three steps in float64."""
    torch.testing.assert_close(found["losses"], wanted["losses"], rtol=1e-9, atol=1e-15)
    assert any(bool(gradient.any()) for gradient in wanted["gradients"][-1].values())
    assert_same_training(found, wanted, slack=1e-12)


@pytest.mark.parametrize(
    ("name", "norm"), [*((name, "group") for name in METHODS.names), ("pscl-moco", "instance")]
)
def test_four_parts_equal_the_whole_batch(
    archive: Path, name: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = rank_cases.exact_method(name)
    exact = {**rank_cases.EXACT, "method": method, "model": {"widths": [4, 8, 8, 16], "norm": norm}}
    monkeypatch.setitem(rank_cases.CASES, "exact", exact)
    monkeypatch.setitem(rank_cases.CASES, "whole", {**exact, "accumulate": 1})
    ranks = Ranks.alone(CPU)
    compare(train(archive, "exact", ranks), train(archive, "whole", ranks))


class Thinned(Simclr):
    """A method that draws from the global generator in its forward pass."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.global_head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(8))
        self.global_head(torch.zeros(1, 16, 4, 4))
        self.seen: list[Tensor] = []
        self.global_head[1].register_forward_hook(lambda _, __, output: self.seen.append(output.detach()))


def test_both_passes_draw_the_same_random_numbers(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "implementation", lambda config: Thinned)
    config = small_config(archive, Path("unused"), method={"name": "simclr"}, **rank_cases.EXACT)
    with Archive(archive) as opened:
        task = PretrainTask(config, opened, Ranks.alone(CPU))
        assert isinstance(task.module, Thinned)
        task.module.seen.clear()
        torch.manual_seed(1)
        task.joint_backward([task.dataset[part] for part in range(4)], 0, measure=True)
    seen = task.module.seen
    # Two views of four parts; then of the first three again, as the last one keeps its graph.
    assert len(seen) == 14
    assert all(torch.equal(a, b) for a, b in zip(seen[:6], seen[8:], strict=True))
    assert not torch.equal(seen[0] == 0, seen[2] == 0)


def test_the_log_and_a_resumed_run(tmp_path: Path) -> None:
    archive = small_archive(tmp_path / "a.h5", images=12)
    method = rank_cases.exact_method("pscl-simclr")
    exact = {**rank_cases.EXACT, "method": method, "schedule": {"steps": 4}}
    folder = pretrain(small_config(archive, tmp_path / "exact", **exact))
    whole = pretrain(small_config(archive, tmp_path / "whole", **{**exact, "accumulate": 1}))
    for found, wanted in zip(folder.metrics(), whole.metrics(), strict=True):
        assert found.keys() == wanted.keys()
    first, wanted = folder.metrics()[0], whole.metrics()[0]
    for key in ("loss", "image/loss", "scale0/templates", "scale1/purity", "gradient_norm"):
        assert first[key] == pytest.approx(wanted[key], rel=1e-4), key
    expected = [line["loss"] for line in folder.metrics()]
    (folder.path / "checkpoints" / "step-00000004.pt").unlink()
    folder.update(status="running")
    again = pretrain(small_config(archive, tmp_path / "exact", **exact))
    assert [line["loss"] for line in again.metrics()] == expected


@pytest.mark.parametrize("model", [{"name": "unet"}, {"name": "efficientnet-lite0", "init": "random"}])
def test_batch_statistics_are_refused(archive: Path, model: dict[str, Any]) -> None:
    config = small_config(
        archive, Path("unused"), **{**rank_cases.EXACT, "model": model, "method": {"name": "simclr"}}
    )
    with Archive(archive) as opened, pytest.raises(UserError, match=r"accumulate=exact.*model\.norm=group"):
        PretrainTask(config, opened, Ranks.alone(CPU))


class Normalised(Simclr):
    """A method with batch statistics before its loss."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.global_head = nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d())
        self.global_head(torch.zeros(2, 16, 4, 4))


def test_batch_statistics_in_a_method_are_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "implementation", lambda config: Normalised)
    config = small_config(archive, Path("unused"), method={"name": "simclr"}, **rank_cases.EXACT)
    with Archive(archive) as opened:
        task = PretrainTask(config, opened, Ranks.alone(CPU))
        assert isinstance(task.module, Method)
        with pytest.raises(UserError, match=r"global_head\.1"):
            task.joint_backward([task.dataset[part] for part in range(4)], 0, measure=False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 9}, "part_size"),
        ({"part_size": 3}, "part_size"),
        (
            {"method": {"name": "pscl-simclr", "reference": {"ids": ["alloy/0"], "per_batch": 2}}},
            "per_batch=4",
        ),
        ({"accumulate": "Exact"}, "accumulate"),
        ({"accumulate": 0}, "accumulate"),
    ],
)
def test_parts_that_do_not_divide_the_batch_are_refused(
    archive: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        small_config(archive, Path("unused"), **{**rank_cases.EXACT, "method": {"name": "simclr"}, **changes})


def test_parts_that_do_not_divide_the_ranks_are_refused(archive: Path) -> None:
    config = small_config(archive, Path("unused"), **{**rank_cases.EXACT, "method": {"name": "simclr"}})
    with Archive(archive) as opened, pytest.raises(UserError, match=r"4 parts.*3 ranks.*batch_size=12"):
        PretrainData(opened, config, rank=0, ranks=3)

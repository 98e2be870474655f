"""One rank with a whole batch, and two ranks with half of it each: same loss, gradients, weights and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.archive import Archive
from pscl_hpc.config import to_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.models.unet import UNetConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation.data import WindowDataset, select_data
from pscl_hpc.training import Ranks
from tests.helpers import PATIENCE_S
from tests.pretraining.ranks import assert_same_training, results_of_two, start_ranks

from .helpers import settings
from .rank_worker import CASES, train, validate
from .test_semi_supervised import dataset, semi

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def by_two(archive_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of each of two ranks, per case."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("rank_worker.py")
    return results_of_two(worker, [str(archive_file), str(folder)], folder)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_compute_the_same_as_one(
    archive_file: Path, by_two: list[dict[str, Any]], name: str
) -> None:
    alone = train(archive_file, name, Ranks.alone(CPU))
    first, second = (rank[name] for rank in by_two)
    assert first["values"] == second["values"], "every rank has the loss of the whole batch"
    assert first["images"] == alone["images"], "an error names the images of all ranks"
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), f"{key} differs between the ranks"
    for found, wanted in zip(first["values"], alone["values"], strict=True):
        assert found == pytest.approx(wanted, rel=1e-8, abs=1e-14)
    assert_same_training(first, alone)


def test_two_ranks_share_a_validation(archive_file: Path, by_two: list[dict[str, Any]]) -> None:
    alone = validate(archive_file, Ranks.alone(CPU))
    assert alone["images"] == 5
    assert by_two[0]["scores"] == by_two[1]["scores"] == alone


def test_the_first_rank_decides_for_all(by_two: list[dict[str, Any]]) -> None:
    expected = {"schedule.steps": 200, "runtime.precision": "bf16"}
    assert [rank["decided"] for rank in by_two] == [expected, expected]


def test_a_run_of_two_ranks(archive_file: Path, tmp_path: Path) -> None:
    config = settings(archive_file, tmp_path / "run", references=["alloy/train0", "alloy/train1"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = ["-m", "pscl_hpc.cli", "finetune", "--config", str(tmp_path / "config.yaml")]
    processes = start_ranks(2, command)
    outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0].splitlines()[-1] == config.run
    assert not outputs[1][0], "rank 0 alone reports"
    folder = RunFolder.load(config.run)
    assert folder.done
    assert (folder.path / "model.safetensors").is_file()
    assert folder.attempts[0]["ranks"] == 2
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert folder.record["best"]["mean_dice"] == max(line.get("val/mean_dice", 0) for line in lines)


@pytest.mark.parametrize("rank", [0, 1])
def test_slots_are_divided_among_the_ranks(archive_file: Path, rank: int) -> None:
    config = semi(archive_file, Path("unused"), {"batch_size": 2}, batch_size=4)
    archive = Archive(archive_file)
    whole, own = dataset(config, archive)[3], dataset(config, archive, rank, 2)[3]
    assert own.slots.places == (rank, rank + 2, rank + 4)
    for row, slot in enumerate(own.slots.places):
        assert torch.equal(own.images[row], whole.images[slot])
        assert torch.equal(own.targets[row], whole.targets[slot])
        assert own.ids[row] == whole.ids[slot]


def test_a_batch_that_cannot_be_divided_is_refused(archive_file: Path) -> None:
    archive = Archive(archive_file)
    config = settings(archive_file, Path("unused"), batch_size=3)
    data = select_data(config, archive)
    with pytest.raises(UserError, match=r"^batch_size .*batch_size=4"):
        WindowDataset(archive, data.references, data.classes, config, trunk=UNetConfig(), rank=1, ranks=2)
    with pytest.raises(UserError, match=r"^semi_supervised\.batch_size .*semi_supervised\.batch_size=4"):
        dataset(semi(archive_file, Path("unused"), {"batch_size": 3}), archive, 0, 2)

"""One rank with a whole batch, and two ranks with half of it each: the same loss, gradients, weights and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.training import Ranks
from tests.helpers import small_archive
from tests.pretraining.rank_cases import CASES
from tests.pretraining.rank_worker import train
from tests.pretraining.ranks import assert_same_training, results_of_two


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("archive") / "small.h5", images=12)


@pytest.fixture(scope="module")
def by_two(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks computed, per case."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("rank_worker.py")
    return results_of_two(worker, [str(archive), str(folder), *CASES], folder)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_compute_what_one_does(archive: Path, by_two: list[dict[str, Any]], name: str) -> None:
    alone = train(archive, name, Ranks.alone(torch.device("cpu")))
    first, second = (rank[name] for rank in by_two)
    assert first["losses"] == second["losses"], "every rank has the loss of the whole batch"
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), f"{key} differs between the ranks"
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-9, atol=1e-15)
    # The first step of a method with a queue has nothing to contrast with.
    assert any(bool(gradient.any()) for gradient in alone["gradients"][-1].values())
    assert_same_training(first, alone)

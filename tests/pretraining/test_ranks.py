"""One rank with a whole batch, and two ranks with half of it each: the same loss, gradients, weights and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.training import Ranks
from tests.helpers import PATIENCE_S, small_archive
from tests.pretraining.rank_cases import CASES
from tests.pretraining.rank_worker import train
from tests.pretraining.ranks import start_ranks


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("archive") / "small.h5", images=12)


@pytest.fixture(scope="module")
def by_two(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks computed, per case."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = str(Path(__file__).with_name("rank_worker.py"))
    processes = start_ranks(2, [worker, str(archive), str(folder), *CASES])
    outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


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
    for step, (found, wanted) in enumerate(zip(first["gradients"], alone["gradients"], strict=True)):
        assert found.keys() == wanted.keys()
        # The first step is exact; later ones start from weights that differ by Adam's division of rounding errors.
        tolerance = 1e-9 if step == 0 else 1e-6
        for key in wanted:
            size = float(wanted[key].abs().max())
            torch.testing.assert_close(
                found[key],
                wanted[key],
                rtol=tolerance,
                atol=tolerance * size + 1e-13,
                msg=lambda m, k=key: f"{k}: {m}",
            )
    for key, value in alone["state"].items():
        torch.testing.assert_close(
            first["state"][key], value, rtol=1e-6, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
        )

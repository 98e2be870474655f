"""A folder with one pretraining and four fine-tuning runs, shared by the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fabricated_runs import Alloy, make_alloy, make_finetuning, make_pretraining


@pytest.fixture(scope="session")
def alloy(tmp_path_factory: pytest.TempPathFactory) -> Alloy:
    return make_alloy(tmp_path_factory.mktemp("alloy"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, alloy: Alloy) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    pretraining = make_pretraining(folder / "pretrain", alloy)
    for reference in range(2):
        make_finetuning(folder / f"scratch-{reference}", alloy, reference=reference, amount=0.8)
        make_finetuning(
            folder / f"finetune-{reference}",
            alloy,
            reference=reference,
            amount=0.5 + 0.1 * reference,
            pretrained=str(pretraining),
        )
    return folder

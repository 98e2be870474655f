from __future__ import annotations

from pathlib import Path

import pytest

from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import finetune
from pscl_hpc.segmentation.config import FinetuneConfig

from .material import write_archive


@pytest.fixture(scope="session")
def archive_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive") / "alloys.h5")


@pytest.fixture(scope="session")
def trained(archive_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that has learnt its task roughly."""
    tree = {
        "run": str(tmp_path_factory.mktemp("trained") / "run"),
        "data": {"archive": str(archive_file)},
        "references": ["alloy/train0"],
        "model": {"widths": [4, 8]},
        "crop": [32, 32],
        "batch_size": 2,
        "schedule": {"steps": 40},
        "optimiser": {"lr": 0.01},
        "validation_split": "",
        "runtime": {"device": "cpu", "threads": 1},
    }
    return finetune(FinetuneConfig.model_validate(tree))

from __future__ import annotations

from pathlib import Path

import pytest

from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import finetune

from .helpers import settings, write_archive


@pytest.fixture(scope="session")
def archive_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive") / "alloys.h5")


@pytest.fixture(scope="session")
def trained(archive_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that has learnt its task; tests only add files to its folder."""
    config = settings(
        archive_file,
        tmp_path_factory.mktemp("trained") / "run",
        schedule={"steps": 60},
        validate_every=20,
        checkpoint={"every_steps": 30},
    )
    return finetune(config)

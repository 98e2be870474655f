from __future__ import annotations

from pathlib import Path

import pytest

from pscl_hpc.runs import provenance
from pscl_hpc.study.config import StudyConfig

from .material import AMOUNTS, Fabricator, run, small_study, write_archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("study") / "alloys.h5")


@pytest.fixture(scope="session", autouse=True)
def _known_commit() -> object:
    """Git is not asked for each of the hundreds of made-up runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "commit", lambda: "0123456789abcdef")
        yield patch


@pytest.fixture(scope="session")
def finished(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two seeds, to be read only: pages are written elsewhere."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    study = small_study(archive, folder, seeds=[1, 2], headline=["alloy/test", "alloy/test_ood"])
    run(study, Fabricator(amounts=AMOUNTS))
    return folder


@pytest.fixture
def both(archive: Path, tmp_path: Path) -> StudyConfig:
    """A study whose pool is annotated, for studies of both data sets."""
    return small_study(
        archive,
        tmp_path / "study",
        pretrain={
            "data": {"datasets": ["alloy", "bare"]},
            "batch_size": 3,
            "views": {"size": [32, 32]},
            "model": {"widths": [4, 8, 8]},
            "schedule": {"steps": 4},
        },
    )

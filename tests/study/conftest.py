from __future__ import annotations

from pathlib import Path

import pytest

from .material import write_archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("study") / "alloys.h5")

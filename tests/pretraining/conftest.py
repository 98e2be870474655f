from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import small_archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("archive") / "small.h5")

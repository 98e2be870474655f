from __future__ import annotations

from pathlib import Path

import pytest

from pscl_hpc.runs import provenance

from .material import write_archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("study") / "alloys.h5")


@pytest.fixture(scope="session", autouse=True)
def _known_commit() -> object:
    """Git is not asked for each of the hundreds of made-up runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "commit", lambda: "0123456789abcdef")
        yield patch

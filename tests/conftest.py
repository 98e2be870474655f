"""Fixtures that tests of several parts share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real micrographs: ``PSCL_HPC_REAL_DATA``, else ``../shared/data`` beside the repository; or skip."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PSCL_HPC_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real micrographs at {folder}; set PSCL_HPC_REAL_DATA")
    return folder

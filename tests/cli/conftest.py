"""The console command as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import PATIENCE_S

Console = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def console(tmp_path: Path) -> Console:
    """Run ``pscl-hpc`` with arguments in a folder of its own, without a terminal or input."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pscl_hpc.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    return run

"""Reading processes end with their trainer, whatever kills it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import PATIENCE_S

WORKERS = 2
SCRIPT = """
import os, sys, time
from pathlib import Path
from tests.training.test_loader_end import Slow
from pscl_hpc.training.loader import read_ahead

if __name__ == "__main__":
    batches = read_ahead(Slow(sys.argv[1]), range(10**6), workers=int(sys.argv[2]), pin=False)
    print(next(batches), flush=True)
    time.sleep(600)
"""


class Slow:
    """Endless items. Each reading process leaves its id in a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __getitem__(self, number: int) -> int:
        (Path(self.folder) / str(os.getpid())).touch()
        time.sleep(0.01)
        return number


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie, which nothing in a container may collect."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_readers_end_with_a_killed_trainer(tmp_path: Path) -> None:
    folder = tmp_path / "readers"
    folder.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(WORKERS)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"0\n"
        while len(os.listdir(folder)) < WORKERS:
            assert trainer.poll() is None
            time.sleep(0.02)
        readers = [int(name) for name in os.listdir(folder)]
        servers = [
            int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in readers
        ]
        assert all(map(alive, readers))
        trainer.kill()
        trainer.wait()
        # Torch's own check would not see it: the wait is far below the minutes for which they stayed.
        end = time.monotonic() + PATIENCE_S
        while any(map(alive, readers + servers)):
            assert time.monotonic() < end, "readers outlive their trainer"
            time.sleep(0.05)
    finally:
        trainer.kill()
        trainer.communicate()

"""The test cluster itself starts although one of its daemons is busy."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import SCRIPT

# Fails as the accounting of Slurm does when it is busy: sometimes before it has done anything.
BUSY = """#!/bin/sh
case "$*" in
*" add "*) if mkdir "$TRIES/$(ls "$TRIES" | wc -l)" && [ "$(ls "$TRIES" | wc -l)" -le 2 ]; then
    echo " Problem adding clusters: Unspecified error" >&2
    exit 1
fi ;;
esac
exec {sacctmgr} "$@"
"""


def test_a_cluster_starts_although_its_accounting_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = subprocess.run([str(SCRIPT), "check"], capture_output=True, text=True)
    if missing.returncode:
        pytest.skip(missing.stderr.strip())
    tries = tmp_path / "tries"
    tries.mkdir()
    shim = tmp_path / "bin" / "sacctmgr"
    shim.parent.mkdir()
    shim.write_text(BUSY.replace("{sacctmgr}", str(shutil.which("sacctmgr"))))
    shim.chmod(0o755)
    folder = Path(f"/tmp/pscl-slurm-busy-{os.getpid()}")
    for key, value in {
        "PATH": f"{shim.parent}:{os.environ['PATH']}",
        "TRIES": str(tries),
        "CLUSTER_DIR": str(folder),
        "CLUSTER_PORT": "17917",
        "CLUSTER_NET": "198.18.101",
    }.items():
        monkeypatch.setenv(key, value)
    try:
        done = subprocess.run([str(SCRIPT), "up", "1"], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        monkeypatch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
        clusters = subprocess.run(
            ["sacctmgr", "--noheader", "--parsable2", "list", "cluster", "format=cluster"],
            capture_output=True,
            text=True,
        )
        assert clusters.stdout.split() == ["test"]
        assert len(list(tries.iterdir())) == 3
    finally:
        subprocess.run([str(SCRIPT), "down"], check=True, capture_output=True, timeout=120)
    assert not folder.exists()

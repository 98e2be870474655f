"""The number of CPU threads: a rule, recorded with the run and kept by a resumed one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.config import RuntimeConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import finetune
from pscl_hpc.segmentation.trained import open_run
from pscl_hpc.training import device, setup_device
from tests.segmentation.helpers import settings, stop_after_a_step, write_archive


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "usable_cpus", lambda: 2)
    torch.set_num_threads(2)


@pytest.mark.parametrize(
    ("torchs", "usable", "local_world", "expected", "in_slurm"),
    [
        (16, 6, 1, 6, 6),
        (16, 6, 3, 2, 6),
        (16, 6, 8, 1, 6),
        (4, 8, 1, 4, 4),  # OMP_NUM_THREADS, as torch has read it
    ],
)
def test_the_share_of_the_usable_cpus(
    monkeypatch: pytest.MonkeyPatch, torchs: int, usable: int, local_world: int, expected: int, in_slurm: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: torchs)
    monkeypatch.setattr(device, "usable_cpus", lambda: usable)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    setup_device(RuntimeConfig(device="cpu"), 0, local_world)
    setup_device(RuntimeConfig(device="cpu", threads=3), 0, local_world)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    setup_device(RuntimeConfig(device="cpu"), 0, local_world)
    assert chosen == [expected, 3, in_slurm]


@pytest.mark.usefixtures("two_cpus")
def test_a_resumed_run_keeps_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_archive(tmp_path / "alloys.h5")

    def config(name: str, **runtime: Any) -> Any:
        return settings(archive, tmp_path / name, runtime={"device": "cpu", **runtime})

    whole = finetune(config("whole", threads=2))
    assert "decided" not in whole.record
    stop_after_a_step(config("stopped"))
    assert RunFolder.load(tmp_path / "stopped").decided == {"runtime.threads": 2}
    # Another machine.
    monkeypatch.setattr(device, "usable_cpus", lambda: 1)
    resumed = finetune(config("stopped"))
    assert "2 CPU threads" in capsys.readouterr().err
    assert resumed.decided == {"runtime.threads": 2}
    assert "2 threads" in resumed.record["device"]
    files = [(run.path / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert files[0] == files[1]
    # A machine that only predicts uses its own CPUs.
    assert open_run(resumed.path)[2].runtime.threads == 0
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "True None"),
        ({"GOMP_SPINCOUNT": "7"}, "False None"),
        ({"OMP_WAIT_POLICY": "active"}, "False active"),
    ],
)
def test_waiting_threads_give_their_cpu_away(given: dict[str, str], expected: str) -> None:
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | given
    ask = (
        "import os, pscl_hpc; count = os.environ.get('GOMP_SPINCOUNT'); "
        "print(10 < int(count or 0) < 10000, os.environ.get('OMP_WAIT_POLICY'))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == expected

"""Which device a run takes, and what it says about GPUs that it cannot use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pscl_hpc.config import RuntimeConfig
from pscl_hpc.errors import UserError
from pscl_hpc.training import device as module
from pscl_hpc.training.device import own_gpus, setup_device

VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_STEP_GPUS",
    "SLURM_JOB_GPUS",
    "SLURM_GPUS_ON_NODE",
    "CUDA_VISIBLE_DEVICES",
)


@pytest.fixture(autouse=True)
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which torch sees no GPU. Gives the folder of its devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "DEVICES", tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


def test_without_gpus_the_cpu_is_taken() -> None:
    assert setup_device(RuntimeConfig()).type == "cpu"
    with pytest.raises(UserError, match=r"runtime\.device is 'cuda'"):
        setup_device(RuntimeConfig(device="cuda"))


def test_gpus_that_torch_cannot_use_are_an_error_with_the_reason(
    no_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_gpu / "nvidia0").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match=r"nvidia0\).*built without CUDA.*runtime\.device=cpu"):
        setup_device(RuntimeConfig())

    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\nand more")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(UserError, match=r"driver on your system is too old\)"):
        setup_device(RuntimeConfig())
    assert setup_device(RuntimeConfig(device="cpu")).type == "cpu"
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert setup_device(RuntimeConfig()).type == "cpu", "hidden on purpose"


@pytest.mark.parametrize(
    ("variables", "given"),
    [
        ({}, False),
        ({"SLURM_GPUS_ON_NODE": "0"}, False),
        ({"SLURM_JOB_GPUS": "0"}, True),
        ({"SLURM_STEP_GPUS": "2,3"}, True),
        ({"SLURM_GPUS_ON_NODE": "1"}, True),
    ],
)
def test_in_a_slurm_job_the_gpus_that_it_was_given_count(
    no_gpu: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], given: bool
) -> None:
    (no_gpu / "nvidia0").touch()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert bool(own_gpus()) == given
    if not given:
        assert setup_device(RuntimeConfig()).type == "cpu"


@pytest.mark.parametrize(
    ("shown", "rank", "seen"),
    [
        ("MIG-a,MIG-b,MIG-c", 1, "MIG-b"),
        ("MIG-a", 1, "MIG-a"),
        ("0,1", 1, "0,1"),
        ("GPU-a,GPU-b", 1, "GPU-a,GPU-b"),
    ],
)
def test_each_rank_takes_its_own_slice(
    monkeypatch: pytest.MonkeyPatch, shown: str, rank: int, seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    setup_device(RuntimeConfig(), rank)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


_FAULTS = """
import resource, torch
from pscl_hpc.training.device import keep_freed_memory
keep_freed_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="an option of the GNU C library")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_large_tensors_take_the_memory_of_earlier_ones(environment: dict[str, str], kept: bool) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) < 100) == kept  # a page fault for each of 16,384 pages, or none

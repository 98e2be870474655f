"""`bench/gpu.sh` on a machine without a GPU: every part runs from end to end at tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["correctness", "ceilings", "loss", "sampling", "queue", "peers", "step", "pretrain", "plots"]

SCRIPT = ROOT / "bench" / "gpu.sh"


def gpu(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script from another folder, as one calls it."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RELEASED", "ARCHIVE", "WHEELS", "BUDGET")}
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)],
        cwd="/",
        env={**inherited, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def outcomes(out: Path) -> dict[str, str]:
    lines = (out / "parts.txt").read_text(encoding="utf-8").splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


@pytest.mark.timeout(600)
def test_every_part_runs_dry(tmp_path: Path) -> None:
    done = gpu("--dry", tmp_path / "out")
    out = tmp_path / "out"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = outcomes(out)
    assert {part for part, outcome in found.items() if not outcome.startswith("ok")} == set()
    assert list(found) == PARTS
    results = {path.stem: json.loads(path.read_text()) for path in out.glob("gpu-cpu-*.json")}
    assert len(results) == 8
    assert all(content["result"]["dry"] for content in results.values())
    for name in ("patch-nt-xent", "queue-info-nce"):
        for entry in results[f"gpu-cpu-{name}"]["result"]["measured"]:
            assert entry["forward and backward"]["median_ms"] > 0
            assert entry["forward"]["share_of_floor"] > 0
            assert entry["loss_error"] < 0.01
            assert entry["gradient_error"] < 0.05
    for entry in results["gpu-cpu-sample-similar"]["result"]["measured"]:
        assert entry["share_exact"] == 1.0
    peers = results["gpu-cpu-peers"]["result"]["measured"]
    installed = {entry["peer"]: entry for entry in peers if entry["version"] != "none"}
    assert installed["torch, eager"]["forward"]["median_ms"] > 0
    assert not [entry for entry in peers if "failed" in entry]
    assert all(entry["skipped"] for entry in peers if entry["version"] == "none")
    assert results["gpu-cpu-step"]["result"]["summary"]["ours"]["images_per_second"] > 0
    assert results["gpu-cpu-pretrain"]["result"]["measured"][0]["images_per_second"] > 0
    assert (out / "gpu-cpu-loss.png").is_file()


def test_a_failing_part_does_not_stop_the_next(tmp_path: Path) -> None:
    # An interpreter whose ceilings fail; plots find nothing to draw, and end well.
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *ceilings*) exit 7 ;; esac\nexec {sys.executable} "$@"\n')
    fake.chmod(0o755)
    done = gpu("--dry", tmp_path / "out", "ceilings", "plots", PYTHON=str(fake))
    assert done.returncode == 1
    found = outcomes(tmp_path / "out")
    assert found["ceilings"].startswith("failed     code 7")
    assert found["plots"].startswith("ok")


def test_a_part_that_hangs_is_cut_off(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    done = gpu("--dry", tmp_path / "out", "ceilings", PYTHON=str(fake), BUDGET="1")
    assert done.returncode == 1
    assert outcomes(tmp_path / "out")["ceilings"].startswith("cut off")


def test_no_part_begins_after_the_budget(tmp_path: Path) -> None:
    done = gpu("--dry", tmp_path / "out", "ceilings", BUDGET="0")
    assert done.returncode == 1
    assert outcomes(tmp_path / "out")["ceilings"].startswith("unfinished")


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    done = gpu(tmp_path / "out", "ceilings", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "failed     code 3" in done.stdout
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("arguments", [(), ("--dry",), ("--fast", "OUT"), ("OUT", "loss", "speed")])
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = gpu(*(str(tmp_path / "out") if word == "OUT" else word for word in arguments))
    assert done.returncode == 2
    assert "usage: bash bench/gpu.sh" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["torch-2.11.0-cp312-none.whl", "nvidia_cublas-13-py3-none.whl", "triton-3.6.0.whl"]
)
def test_no_wheel_of_torch_is_carried(tmp_path: Path, name: str) -> None:
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "inf_cl-1.2.1-py3-none-any.whl").touch()
    command = ["bash", str(ROOT / "bench" / "gpu" / "fetch_wheels.sh"), str(folder), "peers"]
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0
    (folder / name).touch()
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert name in done.stderr

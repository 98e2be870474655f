"""The findings of the doctor, and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pscl_hpc.doctor import Finding, examine, machine, run_check, slurm, storage, torch_stack
from pscl_hpc.errors import UserError
from tests.helpers import PATIENCE_S

from .conftest import Console


def test_findings_as_json(console: Console, tmp_path: Path) -> None:
    done = console("doctor", "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["ready"] is True
    areas = {finding["area"] for finding in values["findings"]}
    assert {
        "Python",
        "torch",
        "GPU",
        "HDF5",
        "HDF5 filters",
        "folder",
        "file locks",
        "disk",
        "Slurm",
    } <= areas
    for finding in values["findings"]:
        assert finding["level"] in ("ok", "note", "problem")
        assert finding["text"]
    filters = next(f for f in values["findings"] if f["area"] == "HDF5 filters")
    assert "gzip" in filters["text"]
    assert list(tmp_path.iterdir()) == []


def test_findings_as_text(console: Console) -> None:
    done = console("doctor")
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith(" can run here.")
    assert "\x1b" not in done.stdout


def test_missing_torch_is_a_problem_and_the_report_continues(tmp_path: Path) -> None:
    # A module that is None in sys.modules cannot be imported.
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        "from pscl_hpc.cli.main import main\nsys.exit(main(['doctor', '--json']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 3, done.stderr
    values = json.loads(done.stdout)
    assert values["ready"] is False
    found = next(f for f in values["findings"] if f["area"] == "torch")
    assert found["level"] == "problem"
    assert "install" in found["fix"]
    # The findings that need no torch are still there; their level depends on the machine, such as its free disk space.
    assert {"folder", "disk", "Slurm"} <= {f["area"] for f in values["findings"]}


@pytest.mark.parametrize(
    ("package", "area", "failure"),
    [
        ("torch", "torch", "OSError('libcudart.so: no such file')"),
        ("h5py", "HDF5", "ValueError('other numpy')"),
    ],
)
def test_a_package_that_breaks_on_import_is_a_problem(
    tmp_path: Path, package: str, area: str, failure: str
) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise {failure}\n")
    # The working directory comes first on the path.
    code = "import sys\nfrom pscl_hpc.cli.main import main\nsys.exit(main(['doctor', '--json']))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 3, done.stderr
    found = next(f for f in json.loads(done.stdout)["findings"] if f["area"] == area)
    assert found["level"] == "problem"
    assert "install" in found["fix"]


def test_a_gpu_that_cannot_compute_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*size: int, device: str) -> None:
        raise RuntimeError("no kernel image is available for execution\nmore")

    properties = type("Properties", (), {"name": "An old card"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: properties)
    monkeypatch.setattr("torch.ones", ones)
    [found] = run_check("GPU", torch_stack.gpu)
    assert found.level == "problem"
    assert found.text.startswith("An old card: ")
    assert found.text.endswith("no kernel image is available for execution")


def test_a_folder_that_cannot_be_written_is_a_problem() -> None:
    findings = {f.area: f for f in examine(Path("/proc"))}
    assert findings["folder"].level == "problem"
    assert findings["folder"].fix
    assert findings["file locks"].level == "note"


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: "):
        list(examine(tmp_path / "absent"))


def test_locks_that_do_not_work_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [f.level for f in storage.locking(tmp_path)] == ["ok"]
    monkeypatch.setattr("pscl_hpc.doctor.storage.fcntl.flock", lambda handle, how: None)
    assert [f.level for f in storage.locking(tmp_path)] == ["note"]


@pytest.mark.parametrize(("free", "level"), [(10**7, "problem"), (10**9, "note"), (10**11, "ok")])
def test_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("pscl_hpc.doctor.storage.shutil.disk_usage", lambda folder: usage)
    assert next(storage.space(tmp_path)).level == level


def test_a_wrong_pair_of_torch_and_triton_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    assert [f.level for f in torch_stack.triton()] == ["ok"]
    monkeypatch.setattr(triton, "__version__", "3.1.0")
    found = next(torch_stack.triton())
    assert found.level == "note"
    assert "pip install" in found.fix


def test_a_second_copy_of_the_kernels_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [f.level for f in torch_stack.kernels()] == ["ok"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.0")
    [found] = torch_stack.kernels()
    assert found.level == "problem"
    assert "pip uninstall pscl-kernels" in found.fix


def test_more_threads_than_cores_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 4096)
    found = next(machine.cpu())
    assert found.level == "note"
    assert "OMP_NUM_THREADS" in found.fix


def test_slurm_commands_without_a_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "--cluster local" in next(slurm.commands()).text
    answers = {"scontrol": "echo 'slurm 23.02.6'; [ $1 = --version ]"}
    for name in slurm.COMMANDS:
        (tmp_path / name).write_text(f"#!/bin/sh\n{answers.get(name, 'exit 1')}\n")
        (tmp_path / name).chmod(0o755)
    found = list(slurm.commands())
    assert [f.level for f in found] == ["note"]
    assert "slurm 23.02.6" in found[0].text
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'Slurmctld(primary) at n0 is UP'\n")
    assert [f.level for f in slurm.commands()] == ["ok", "note"]  # sacct still fails
    (tmp_path / "sacct").write_text("#!/bin/sh\nexit 0\n")
    assert [f.level for f in slurm.commands()] == ["ok"]
    (tmp_path / "sacct").unlink()
    assert "sacct" in next(slurm.commands()).text


def test_an_error_in_a_check_is_a_finding() -> None:
    def check():  # type: ignore[no-untyped-def]
        yield Finding("ok", "first")
        raise RuntimeError("broken")

    found = run_check("x", check)
    assert [(f.area, f.level) for f in found] == [("x", "ok"), ("x", "note")]
    assert "RuntimeError: broken" in found[1].text

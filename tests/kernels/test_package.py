"""The operations as a package of their own: its metadata, and what its README shows."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pscl_kernels

ROOT = Path(__file__).resolve().parents[2]
ONLY_TORCH = 'import sys; sys.modules.update(dict.fromkeys(("numpy", "triton", "pscl_hpc")))\n'


def blocks() -> dict[str, str]:
    """Python code of every README, by file and number."""
    listed = subprocess.run(
        ["git", "ls-files", "*README.md"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    found = {}
    for name in listed or ["kernels/README.md"]:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)):
            found[f"{name} {number}"] = code
    return found


def run(code: str) -> None:
    """In a process without anything but torch and this package."""
    path = str(Path(pscl_kernels.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", ONLY_TORCH + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", blocks())
def test_code_of_the_readme_runs_as_it_stands(name):
    run(blocks()[name])


def test_quick_start_is_among_them():
    assert any("patch_nt_xent" in code for name, code in blocks().items() if name.startswith("kernels/"))


def test_package_works_with_torch_alone():
    run(
        "import torch, pscl_kernels as p\n"
        "x = torch.randn(40, 3, requires_grad=True)\n"
        "groups = torch.arange(40) % 3\n"
        "(p.patch_nt_xent(x, x, groups) + p.queue_info_nce(x, x, x, groups=groups, queue_groups=groups)).backward()\n"
        "p.sample_similar(x, x[None])\n"
        "p.patch_similarity_stats(x, x, groups)\n"
        "assert x.grad.isfinite().all()\n"
    )


def test_metadata_agrees_with_the_toolkit():
    """The toolkit's wheel contains the same modules, and so must have their requirements."""
    own, toolkit = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for folder in (ROOT / "kernels", ROOT)
    )
    assert set(own["dependencies"]) <= set(toolkit["dependencies"])
    assert own["optional-dependencies"]["triton"] == toolkit["optional-dependencies"]["triton"]
    assert own["requires-python"] == toolkit["requires-python"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", pscl_kernels.__version__)

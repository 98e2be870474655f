"""Results of measurements as JSON, each with what is needed to repeat it."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
"""Folder of the results, unless the environment variable PSCL_BENCH_RESULTS names another."""

PACKAGES = ("torch", "triton", "numpy", "h5py", "monai")


def record(name: str, result: dict[str, Any], *, command: str) -> Path:
    """Write `result` to `<results folder>/<name>.json` and return that path.

    The file also has the command that measured it, the commit (marked "+changes" if tracked files differ from it;
    outside a checkout, the environment variable PSCL_BENCH_COMMIT), the date, the devices and the versions. An older
    file of that name is replaced.
    """
    folder = Path(os.environ.get("PSCL_BENCH_RESULTS", RESULTS))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "name": name,
        "command": command,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device(),
        "versions": package_versions(),
        "result": result,
    }
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
    return path


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        return commit + ("+changes" if git("diff", "HEAD", "--name-only").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PSCL_BENCH_COMMIT", "unknown")


def _device() -> dict[str, Any]:
    device: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if hasattr(os, "getloadavg"):
        device["load_average"] = round(os.getloadavg()[0], 2)  # shows other work on the machine
    if torch.cuda.is_available():
        device["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return device


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed ones of `PACKAGES`."""
    found = {package: version_of(package) for package in PACKAGES}
    return {"python": sys.version.split()[0], **{k: v for k, v in found.items() if v != "none"}}


def version_of(package: str) -> str:
    """Version of a distribution; "none" if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"

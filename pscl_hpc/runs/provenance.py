"""Provenance of a run: commit, versions, device, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

START = "PSCL_START"
"""Environment variable that names this start of a job, ``JOB.RESTART``."""
PACKAGES = ("pscl-hpc", "torch", "triton", "numpy", "h5py", "monai", "submitit")


def now() -> str:
    """Local time with zone, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def describe_device(device: torch.device) -> str:
    """Name of a device, for records."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'} ({cpu_name()})"


def cpu_name() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def node_name() -> str:
    """Name of this machine: ``PSCL_NODE``, set from the scheduler, else its host name."""
    return os.environ.get("PSCL_NODE") or socket.gethostname()


def commit() -> str:
    """Commit of the running code, with ``+changes`` when files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def slurm_restart() -> str:
    """How often Slurm restarted the job of this process; "0" without Slurm."""
    return os.environ.get("SLURM_RESTART_COUNT") or "0"


def job_start() -> str:
    """The job and the number of its restarts, ``JOB.RESTART``; empty for a process that is not part of a job."""
    return os.environ.get(START, "")


def describe_attempt() -> dict[str, Any]:
    """Description of this process for the list of attempts."""
    return {
        "started": now(),
        "host": socket.gethostname(),
        "node": node_name(),
        "pid": os.getpid(),
        "job": job_start(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "slurm_restart": slurm_restart(),
        "command": shlex.join(sys.argv),
        "commit": commit(),
        "versions": versions(),
    }


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()

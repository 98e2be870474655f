"""Python, CPU cores and memory, within the limits of the control groups (cgroups) of this process.

A Slurm job with limits and a container are in a control group. Each level from the process's own group to the root may
have a limit, and the smallest counts. Both layouts of Linux are read (cgroups(7)): version 2 with one tree, version 1
with one tree for each controller.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pscl_hpc.doctor.findings import GIB, Finding

_V1_NO_LIMIT = 1 << 60
"""Version 1 writes a number near 2^63 for no limit."""


def python() -> Iterator[Finding]:
    """The interpreter."""
    text = f"{platform.python_version()} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("ok", text)
    else:
        yield Finding("note", text, "use Python 3.11 or 3.12, which are tested")


def cpu() -> Iterator[Finding]:
    """The usable cores, compared with the threads that torch would start."""
    import torch

    from pscl_hpc.runs.provenance import cpu_name

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    usable = cores if quota is None else min(cores, max(1, int(quota)))
    threads = torch.get_num_threads()
    text = f"{cpu_name()}, {usable} cores usable, torch uses {threads} threads"
    if threads > usable:
        yield Finding("note", text, f"set OMP_NUM_THREADS={usable} or runtime.threads={usable}")
    else:
        yield Finding("ok", text)


def memory() -> Iterator[Finding]:
    """Main memory, and the shared memory through which data loading processes pass batches."""
    values = [available_memory()]
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                values.append(int(line.split()[1]) * 1024)
    available = min((value for value in values if value is not None), default=None)
    if available is not None:
        enough = available >= 2 * GIB
        fix = "" if enough else "close other programs, or use smaller views.size and batch_size"
        yield Finding("ok" if enough else "note", f"{available / GIB:.1f} GiB free", fix)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        if free < 256 * 1024**2:
            yield Finding(
                "note",
                f"/dev/shm has only {free / 1024**2:.0f} MiB",
                "keep runtime.workers=0, or start the container with more (docker run --shm-size 2g)",
            )


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that the control groups grant; None without a limit."""
    found = []
    for folder in _groups(root, ""):
        limit, _, period = _text(folder / "cpu.max").partition(" ")
        if limit.isdigit() and period.isdigit():
            found.append(int(limit) / int(period))
    for folder in _groups(root, "cpu"):
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            found.append(int(quota) / int(period))
    return min(found, default=None)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes left within the control groups, with files in the page cache counted as free; None without a limit."""
    found = []
    for controller, limit_file, used_file, cached in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _groups(root, controller):
            limit, used = _text(folder / limit_file), _text(folder / used_file)
            if limit.isdigit() and used.isdigit() and int(limit) < _V1_NO_LIMIT:
                found.append(int(limit) - int(used) + _cached(folder, cached))
    return max(0, min(found)) if found else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and of all groups above it; ``controller`` is empty for version 2."""
    top = root / "sys/fs/cgroup" / controller
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = top / path.lstrip("/")
            # In a container the path is often that of the host; the group itself is then mounted at the top.
            yield from dict.fromkeys(folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _cached(folder: Path, key: str) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

"""CPUs and memory that this process may use, within the limits of its control groups (cgroups).

A Slurm job with limits and a container are in a control group. Each level from the process's own group to the root may
have a limit, and the smallest counts. Both layouts of Linux are read (cgroups(7)): version 2 with one tree, version 1
with one tree for each controller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_V1_NO_LIMIT = 1 << 60
"""Version 1 writes a number near 2^63 for no limit."""


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: those it is bound to, or fewer if its control groups grant less time."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cpus if quota is None else min(cpus, max(1, int(quota)))


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
    """Bytes that this process may still take: of the machine, or of its control groups if these have less.

    Files in the page cache count as free. None if the system does not tell.

    Args:
        root: Contains ``proc`` and ``sys``.
    """
    found = []
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            found.append(int(value.split()[0]) * 1024)
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

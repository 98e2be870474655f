"""What the control groups of this process leave it: a Slurm job with limits is in one, a container too.

Limits stand at every level from the process's own group up to the root; the tightest counts. Both layouts of Linux are
read (cgroups(7)): version 2 with one tree, version 1 with one for each controller.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_V1_NO_LIMIT = 1 << 60
"""Version 1 says no limit by a number near 2^63."""


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that the groups grant; None without a limit."""
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
    """Bytes that the groups leave, files in the page cache counted as free; None without a limit."""
    found = []
    for folder in _groups(root, ""):
        limit, used = _text(folder / "memory.max"), _text(folder / "memory.current")
        if limit.isdigit() and used.isdigit():
            found.append(int(limit) - int(used) + _cached(folder, "inactive_file"))
    for folder in _groups(root, "memory"):
        limit, used = _text(folder / "memory.limit_in_bytes"), _text(folder / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit() and int(limit) < _V1_NO_LIMIT:
            found.append(int(limit) - int(used) + _cached(folder, "total_inactive_file"))
    return max(0, min(found)) if found else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and of all above it; ``controller`` is empty for version 2."""
    top = root / "sys/fs/cgroup" / controller
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = top / path.lstrip("/")
            # In a container the path is often that of the host: then the group is mounted at the top.
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

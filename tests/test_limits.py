"""CPUs and memory of the machine and of the control groups that a process is in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pscl_hpc.limits import available_memory, cpu_quota, usable_cpus

JOB = "system.slice/slurmstepd.scope/job_7"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def test_the_tightest_limit_above_a_job_counts(tmp_path: Path) -> None:
    v2 = "sys/fs/cgroup"
    write(
        tmp_path,
        {
            "proc/self/cgroup": f"0::/{JOB}/step_0",
            f"{v2}/{JOB}/step_0/memory.max": "max",
            f"{v2}/{JOB}/step_0/memory.current": "10",
            f"{v2}/{JOB}/step_0/cpu.max": "400000 100000",
            f"{v2}/{JOB}/memory.max": "1000",
            f"{v2}/{JOB}/memory.current": "700",
            f"{v2}/{JOB}/memory.stat": "anon 400\nfile 300\ninactive_file 250",
            f"{v2}/{JOB}/cpu.max": "150000 100000",
            f"{v2}/system.slice/memory.max": "5000",
            f"{v2}/system.slice/memory.current": "900",
            f"{v2}/system.slice/cpu.max": "max 100000",
        },
    )
    assert available_memory(tmp_path) == 1000 - 700 + 250
    assert cpu_quota(tmp_path) == 1.5


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    v1 = "sys/fs/cgroup"
    write(
        tmp_path,
        {
            "proc/self/cgroup": f"4:memory:/{JOB}\n2:cpu,cpuacct:/{JOB}\n1:name=systemd:/",
            f"{v1}/memory/{JOB}/memory.limit_in_bytes": "2000",
            f"{v1}/memory/{JOB}/memory.usage_in_bytes": "500",
            f"{v1}/memory/{JOB}/memory.stat": "inactive_file 1\ntotal_inactive_file 100",
            f"{v1}/memory/memory.limit_in_bytes": "9223372036854771712",
            f"{v1}/memory/memory.usage_in_bytes": "800",
            f"{v1}/cpu/{JOB}/cpu.cfs_quota_us": "-1",
            f"{v1}/cpu/{JOB}/cpu.cfs_period_us": "100000",
            f"{v1}/cpu/cpu.cfs_quota_us": "200000",
            f"{v1}/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert available_memory(tmp_path) == 1600
    assert cpu_quota(tmp_path) == 2.0


def test_a_container_sees_its_group_at_the_top(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/of/the/host",
            "sys/fs/cgroup/memory.max": "100",
            "sys/fs/cgroup/memory.current": "180",
        },
    )
    assert available_memory(tmp_path) == 0


@pytest.mark.parametrize("files", [{}, {"proc/self/cgroup": "0::/"}])
def test_without_limits_there_are_none(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    assert available_memory(tmp_path) is None
    assert cpu_quota(tmp_path) is None


def test_memory_of_the_machine_and_of_its_groups(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 99 kB\nMemAvailable: 5 kB",
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": "9000",
            "sys/fs/cgroup/memory.current": "1000",
        },
    )
    assert available_memory(tmp_path) == 5 * 1024
    write(tmp_path, {"proc/meminfo": "MemAvailable: 900 kB"})
    assert available_memory(tmp_path) == 8000


@pytest.mark.parametrize(("quota", "expected"), [("max", 6), ("50000", 1), ("250000", 2), ("900000", 6)])
def test_cpus_are_those_of_the_affinity_within_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": f"{quota} 100000"})
    assert usable_cpus(tmp_path) == expected

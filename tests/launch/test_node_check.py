"""The check of a node before its ranks start."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pscl_hpc.errors import JobError
from pscl_hpc.files import is_no_space
from pscl_hpc.launch import node_check
from pscl_hpc.launch.node_check import BadNodeError, check_node, free_memory

GIB = 1 << 30


def system(root: Path, *, available: int, groups: str = "", **files: str) -> Path:
    """A made-up /proc and /sys; ``files`` maps paths below /sys/fs/cgroup, with __ for /."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_healthy_node_passes_and_leaves_nothing(tmp_path: Path) -> None:
    assert check_node("n1", tmp_path, 1) == []
    assert os.listdir(tmp_path) == []


def test_too_little_memory_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_check, "free_memory", lambda: GIB)
    assert check_node("n7", tmp_path, 2) == []
    with pytest.raises(BadNodeError, match=r"node n7: 1024 MB .* 3 rank") as caught:
        check_node("n7", tmp_path, 3)
    assert caught.value.node == "n7"
    monkeypatch.setattr(node_check, "free_memory", lambda: None)
    assert check_node("n7", tmp_path, 3) == []


def test_memory_of_the_machine_and_of_its_groups(tmp_path: Path) -> None:
    assert free_memory(system(tmp_path / "plain", available=5 * GIB)) == 5 * GIB
    assert free_memory(tmp_path / "nothing") is None
    second = {
        "job__memory_dot_max": str(4 * GIB),
        "job__memory_dot_current": str(3 * GIB),
        "job__memory_dot_stat": f"inactive_file {GIB // 2}\n",
        "job__step__memory_dot_max": "max\n",
    }
    root = system(tmp_path / "second", available=5 * GIB, groups="0::/job/step\n", **second)
    assert free_memory(root) == 1.5 * GIB, "the limit of the group above, without cached files"
    first = {
        "memory__job__memory_dot_limit_in_bytes": str(2 * GIB),
        "memory__job__memory_dot_usage_in_bytes": str(GIB),
        "memory__job__memory_dot_stat": "total_inactive_file 0\n",
        "memory__memory_dot_limit_in_bytes": str((1 << 63) - 4096),
        "memory__memory_dot_usage_in_bytes": "1",
        "memory__memory_dot_stat": "",
    }
    groups = "5:cpu,cpuacct:/job\n4:memory:/job\n"
    assert free_memory(system(tmp_path / "first", available=5 * GIB, groups=groups, **first)) == GIB


def test_a_folder_that_is_not_there_is_the_nodes_fault(tmp_path: Path) -> None:
    with pytest.raises(BadNodeError, match=r"node n2: cannot write into .*gone.*mounted"):
        check_node("n2", tmp_path / "gone", 1)


def test_a_full_disk_is_not_the_nodes_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    for step, size in ((2, 10 * GIB), (4, 100)):
        with (tmp_path / "checkpoints" / f"step-{step:08d}.pt").open("wb") as file:
            file.truncate(size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=101))
    assert check_node("n1", tmp_path, 1) == [], "the newest checkpoint counts"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=99))
    with pytest.raises(JobError, match="less than a checkpoint") as caught:
        check_node("n1", tmp_path, 1)
    assert not isinstance(caught.value, BadNodeError)
    assert is_no_space(caught.value), "the job ends for good"


@pytest.mark.parametrize(("seconds", "words"), [(0, ""), (300, "300 s ahead of"), (-300, "300 s behind")])
def test_a_wrong_clock_is_a_warning(
    tmp_path: Path, seconds: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = node_check.time.time
    monkeypatch.setattr(node_check.time, "time", lambda: real() + seconds)
    found = check_node("n3", tmp_path, 1)
    assert len(found) == bool(words)
    assert all("node n3" in sentence and words in sentence for sentence in found)

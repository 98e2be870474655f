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
from pscl_hpc.launch.node_check import BadNodeError, check_node

GIB = 1 << 30


def test_a_healthy_node_passes_and_leaves_nothing(tmp_path: Path) -> None:
    assert check_node("n1", tmp_path, 1) == []
    assert os.listdir(tmp_path) == []


def test_too_little_memory_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_check, "available_memory", lambda: GIB)
    assert check_node("n7", tmp_path, 2) == []
    with pytest.raises(BadNodeError, match=r"node n7: 1024 MB .* 3 rank") as caught:
        check_node("n7", tmp_path, 3)
    assert caught.value.node == "n7"
    monkeypatch.setattr(node_check, "available_memory", lambda: None)
    assert check_node("n7", tmp_path, 3) == []


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

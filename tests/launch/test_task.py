"""The ranks of a job, and the check of the code that it runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pscl_hpc.errors import UserError
from pscl_hpc.launch import stage_job
from pscl_hpc.launch.task import Task, rendezvous_port

TASK = Task(
    rank=5, ranks=8, local_rank=1, nodes=2, node="n2", address="n1", job="7_1", port_key="9", restart=3
)


def test_ranks_are_exported_in_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"CUDA_VISIBLE_DEVICES": "3"})
    TASK.check(2, 4)
    TASK.export(4)
    port = rendezvous_port("9", 3)
    assert os.environ == {
        "CUDA_VISIBLE_DEVICES": "3",
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": str(port),
        "PSCL_NODE": "n2",
        "PSCL_START": "7_1.3",
    }
    assert TASK.first_line() == "rank 5 of 8 on n2: job 7_1, restart 3"


@pytest.mark.parametrize(("nodes", "tasks"), [(1, 8), (2, 3), (4, 2), (2, 1), (1, 1)])
def test_other_ranks_than_requested_are_refused(nodes: int, tasks: int) -> None:
    with pytest.raises(UserError, match=rf"^job 7_1 .*{nodes} x {tasks} ranks, .*rank 5 [^\n]+$"):
        TASK.check(nodes, tasks)


@given(
    job=st.integers(1, 10**8).map(str),
    restart=st.integers(0, 100),
    span=st.tuples(st.integers(1024, 60000), st.integers(60000, 65535)),
)
def test_ports_are_not_ephemeral(
    tmp_path_factory: pytest.TempPathFactory, job: str, restart: int, span: tuple[int, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "range"
    path.write_text(f"{span[0]}\t{span[1]}\n")
    port = rendezvous_port(job, restart, path)
    assert 10000 <= port < 65536
    # If nearly all ports are ephemeral, none is better.
    if span[0] >= 11000 or span[1] < 64535:
        assert not span[0] <= port <= span[1]
    assert port == rendezvous_port(job, restart, path)


def test_a_restart_uses_another_port() -> None:
    assert len({rendezvous_port("4711", restart) for restart in range(20)}) == 20
    assert rendezvous_port("1", 0, Path("/nowhere")) < 32768


def test_any_edit_of_the_code_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path(stage_job.__file__).parent
    shutil.copytree(real, tmp_path / "other" / "sub")

    class Spec:
        submodule_search_locations = (str(tmp_path / "other"),)

    monkeypatch.setattr(stage_job.importlib.util, "find_spec", lambda name: Spec())
    before = stage_job.source_hash()
    stage_job.check_source(before, "abc")
    stage_job.check_source("", "")
    edited = tmp_path / "other" / "sub" / "task.py"
    text = edited.read_text()
    edited.write_text(text + "\n")
    with pytest.raises(UserError, match=r"0123456789ab\+changes.*--any-commit"):
        stage_job.check_source(before, "0123456789abcdef+changes")
    edited.write_text(text)
    assert stage_job.source_hash() == before
    edited.rename(edited.with_name("tusk.py"))
    assert stage_job.source_hash() != before
    edited.with_name("tusk.py").rename(edited)
    (tmp_path / "other" / "notes.txt").write_text("x")
    assert stage_job.source_hash() == before

"""Two ranks that are stopped, killed, frozen or never join: nothing is lost, and the rank is named."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.config import to_yaml
from pscl_hpc.runs import CheckpointStore
from pscl_hpc.training.flight_recorder import record_communication
from tests.helpers import PATIENCE_S, small_config
from tests.pretraining.ranks import start_ranks

STEPS = 30


def command(archive: Path, run: Path, **changes: Any) -> list[str]:
    reference = {"ids": ["alloy/0"], "per_batch": 2}
    tree = {
        "method": {"name": "pscl-simclr", "reference": reference, "templates_per_class": 2},
        "batch_size": 4,
        "schedule": {"steps": STEPS},
        "log": {"every_steps": 10},
        "checkpoint": {"every_steps": 3},
        "model": {"widths": [4, 8]},
        "runtime": {"threads": 1, "collective_timeout_s": 60},
        **changes,
    }
    file = run.with_suffix(".yaml")
    file.write_text(to_yaml(small_config(archive, run, **tree)))
    return [str(Path(__file__).with_name("held.py")), "pretrain", "--config", str(file)]


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors; all processes end whatever happens here."""
    try:
        errors = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def wait_until(condition: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)


def hold(run: Path, step: int) -> None:
    """Let the ranks of a run wait after this step."""
    run.with_suffix(".hold").write_text(str(step))


def release(run: Path) -> None:
    run.with_suffix(".hold").unlink()


def newest(run: Path) -> int:
    return max([0, *CheckpointStore(run / "checkpoints").steps()])


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


def test_stopped_then_killed_then_finished_equals_uninterrupted(archive: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    codes, errors = ended(start_ranks(2, command(archive, whole)))
    assert codes == [0, 0], errors
    start = command(archive, broken)

    hold(broken, 7)
    asked = start_ranks(2, start)
    wait_until(lambda: newest(broken) >= 3, asked)
    # One rank is enough: the ranks agree.
    asked[1].send_signal(signal.SIGTERM)
    release(broken)
    codes, errors = ended(asked)
    assert codes == [130, 130], errors
    assert "SIGTERM" in errors[0]
    assert not errors[1]
    assert (record(broken)["status"], record(broken)["error"]) == ("stopped", "SIGTERM")
    saved = newest(broken)

    hold(broken, saved + 7)
    killed = start_ranks(2, start)
    wait_until(lambda: newest(broken) > saved, killed)
    killed[1].send_signal(signal.SIGKILL)
    release(broken)
    codes, errors = ended(killed)
    assert codes == [3, -9], errors
    assert "rank 1 on node1" in errors[0]
    assert "rank 1 on node1" in record(broken)["error"]
    assert newest(broken) < STEPS

    codes, errors = ended(start_ranks(2, start))
    assert codes == [0, 0], errors
    states = [CheckpointStore(run / "checkpoints").load_latest() for run in (whole, broken)]
    assert_identical(*states)
    assert (whole / "trunk.safetensors").read_bytes() == (broken / "trunk.safetensors").read_bytes()
    attempts = record(broken)["attempts"]
    assert [attempt["number"] for attempt in attempts] == [1, 2, 3]
    assert [attempt["ranks"] for attempt in attempts] == [2, 2, 2]
    assert attempts[0]["first_step"] == 0 < attempts[1]["first_step"] == saved < attempts[2]["first_step"]
    assert not [path for path in broken.rglob("*") if path.name.endswith((".tmp", ".partial"))]


def assert_identical(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, list):
        for left, right in zip(a, b, strict=True):
            assert_identical(left, right)
    else:
        assert a == b


def test_a_frozen_rank_is_named_in_bounded_time_and_the_communication_is_kept(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(os, "environ", dict(os.environ))
    record_communication(tmp_path, "7.0")
    runtime = {"threads": 1, "collective_timeout_s": 20}
    ranks = start_ranks(
        2, command(archive, run, runtime=runtime, schedule={"steps": 100_000}, method={"name": "simclr"})
    )
    wait_until(lambda: newest(run) >= 3, ranks)
    ranks[1].send_signal(signal.SIGSTOP)
    try:
        error = ranks[0].communicate(timeout=PATIENCE_S)[1]
    finally:
        ranks[1].kill()
        ranks[0].kill()
        ranks[1].communicate()
    assert ranks[0].returncode == 3
    assert "rank 1 on node1" in error
    assert record(run)["status"] == "failed"
    # torch's flight recorder of the rank that waited: the last operation is not complete.
    recorded = pickle.loads((tmp_path / "communication" / "7.0-rank_0").read_bytes())
    assert any("all_reduce" in entry["profiling_name"] for entry in recorded["entries"])


def test_a_rank_that_never_joins_ends_the_others(archive: Path, tmp_path: Path) -> None:
    runtime = {"threads": 1, "init_timeout_s": 5}
    codes, errors = ended(start_ranks(3, command(archive, tmp_path / "run", runtime=runtime), present=2))
    assert codes == [3, 3]
    for rank, error in enumerate(errors):
        assert f"rank {rank} on node{rank}" in error
    # On a busy machine rank 1 may be too late, too.
    assert re.search(r"rank (1, )?2 did not join", errors[0])
    assert not (tmp_path / "run").exists(), "nothing is trained alone"


def test_one_ranks_own_error_ends_all_and_is_named(archive: Path, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, sys\n"
        "from pscl_hpc.cli.main import main\n"
        "lost = ['data.archive=nowhere.h5'] if os.environ['RANK'] == '1' else []\n"
        "sys.exit(main([*sys.argv[1:], *lost]))\n"
    )
    start = ["-m", "pscl_hpc.cli", *command(archive, tmp_path / "run")[1:]]
    codes, errors = ended(start_ranks(2, [str(worker), *start[2:]]))
    assert codes == [3, 2], errors
    assert "rank 1 on node1" in errors[0]
    assert all("nowhere.h5" in error for error in errors)
    assert not (tmp_path / "run").exists()

"""Whatever happens to a job on a real Slurm, its run ends with the weights of one to which nothing happened."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pscl_hpc.config import to_yaml
from pscl_hpc.launch.jobs import requeue, run_status
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.schedulers import SCHEDULERS
from pscl_hpc.launch.submission import Submission
from pscl_hpc.runs import RunFolder

from .conftest import GATE, SCRIPT, Cluster, at_gate, eventually, finish, make_config, ranks_on, slurm, start

pytestmark = pytest.mark.usefixtures("place")
Undisturbed = Callable[[int], str]


def ends(done: Submission) -> list[str]:
    """Why each attempt but the last ended."""
    return [attempt["ended"] for attempt in RunFolder.load(done.run).attempts[:-1]]


def node_of(done: Submission, rank: int) -> str:
    """The node on which a rank began last."""
    (node,) = (node for node in ("n1", "n2", "n3") if rank in ranks_on(done, node))
    return node


def first_steps(done: Submission) -> list[int]:
    """After which step each attempt began."""
    return [attempt["first_step"] for attempt in RunFolder.load(done.run).attempts]


def test_preemption_and_requeue_lose_no_step(undisturbed: Undisturbed) -> None:
    done = start("runs/a 'b'", Profile(nodes=2, partition="main", time="20"))
    at_gate(done)
    # All nodes for a job that comes first.
    urgent = slurm(
        "sbatch",
        "--parsable",
        "-p",
        "urgent",
        "-N",
        "3",
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 1",
    )
    eventually("the job gives way", lambda: SCHEDULERS["slurm"].state(done.job).phase == "pending")
    at_gate(done, 1)
    assert slurm("sacct", "-X", "-n", "-P", "-j", urgent, "-o", "State") == "COMPLETED"

    assert requeue(done.run).state in ("queued", "starting", "running")
    at_gate(done, 2)
    # By hand: Slurm sends SIGTERM and kills what is left after KillWait, which is enough to save here.
    slurm("scontrol", "requeue", done.job.job)
    at_gate(done, 3)

    assert finish(done) == undisturbed(2)
    assert first_steps(done) == [0, GATE + 1, GATE + 2, GATE + 3]
    assert all("preempted" in end or "terminated" in end for end in ends(done)), ends(done)


def test_dead_ranks_and_nodes_cost_the_steps_since_the_last_checkpoint(
    cluster: Cluster, undisturbed: Undisturbed
) -> None:
    done = start("runs/a", Profile(nodes=2, time="20", retries=3))
    at_gate(done)
    node = node_of(done, 1)
    cluster("inside", node, "pkill", "-KILL", "-f", "submitit.core._submit")
    at_gate(done, 1)

    node = node_of(done, 1)
    cluster("crash", node)
    try:
        at_gate(done, 2)  # on the other nodes
    finally:
        cluster("boot", node)

    node = node_of(done, 1)
    cluster("crash", node)
    cluster("boot", node)
    at_gate(done, 3)

    assert finish(done) == undisturbed(2)
    assert first_steps(done) == [0, 4, 4, 4]
    assert "killed by signal 9" in ends(done)[0] or "rank 1 on" in ends(done)[0]


def test_a_node_without_network_cannot_write_into_its_successors_run(
    cluster: Cluster, undisturbed: Undisturbed
) -> None:
    done = start("runs/a", Profile(nodes=2, time="20"))
    at_gate(done)
    node = node_of(done, 0)

    def orphans() -> str:
        return cluster("inside", node, "sh", "-c", "pgrep -f [s]ubmitit.core._submit || true")

    cluster("unplug", node)
    try:
        # Its tasks live on while other nodes take over.
        at_gate(done, 1)
        assert node not in (node_of(done, 0), node_of(done, 1))
        assert orphans()
        assert finish(done) == undisturbed(2)
    finally:
        cluster("plug", node)
    eventually("no task is left on the node", lambda: not orphans())
    # What the orphan tried to write came to nothing.
    assert finish(done) == undisturbed(2)


def test_the_time_limit_is_announced_and_the_run_goes_on(undisturbed: Undisturbed) -> None:
    done = start("runs/a", Profile(nodes=2, time="1"))
    at_gate(done)
    at_gate(done, 1)
    assert finish(done) == undisturbed(2)
    assert first_steps(done) == [0, GATE + 1]
    assert "near the time limit" in ends(done)[0]
    assert run_status(done.run).last_end == ends(done)[0]


def test_the_template_for_batch_scripts_by_hand(
    place: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "c.yaml").write_text(to_yaml(make_config("runs/by hand")))
    (place / "pscl-hpc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pscl_hpc.cli "$@"\n')
    (place / "pscl-hpc").chmod(0o755)
    monkeypatch.setenv("PSCL_HPC", str(place / "pscl-hpc"))
    shape = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=5"]
    slurm("sbatch", "--wait", *shape, str(SCRIPT.parent / "pretrain.sbatch"), "c.yaml")
    weights = (place / "runs" / "by hand" / "trunk.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == undisturbed(2)

"""Preemption, requeueing and time limits on a real Slurm: the weights are those of an undisturbed run."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pscl_hpc.config import to_yaml
from pscl_hpc.launch.control import requeue
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.schedulers import SCHEDULERS
from pscl_hpc.launch.status import run_status

from .conftest import GATE, SCRIPT, at_gate, ends, eventually, finish, first_steps, make_config, slurm, start

pytestmark = pytest.mark.usefixtures("place")
Undisturbed = Callable[[int], str]


def test_preemption_and_requeue_lose_no_step(undisturbed: Undisturbed) -> None:
    done = start("runs/a 'b'", Profile(nodes=2, partition="main", time="20"))
    at_gate(done)
    # A job of higher priority that needs all nodes.
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
    eventually("the job is preempted", lambda: SCHEDULERS["slurm"].state(done.job).phase == "pending")
    at_gate(done, 1)
    assert slurm("sacct", "-X", "-n", "-P", "-j", urgent, "-o", "State") == "COMPLETED"

    assert requeue(done.run).state in ("queued", "starting", "running")
    at_gate(done, 2)
    # By hand: Slurm sends SIGTERM, and SIGKILL after KillWait, which is long enough to save here.
    slurm("scontrol", "requeue", done.job.job)
    at_gate(done, 3)

    assert finish(done) == undisturbed(2)
    assert first_steps(done) == [0, GATE + 1, GATE + 2, GATE + 3]
    assert all("preempted" in end or "terminated" in end for end in ends(done)), ends(done)


def test_a_run_saves_before_the_time_limit_and_resumes(undisturbed: Undisturbed) -> None:
    # Two minutes: a slow machine needs more than one to reach the gate.
    done = start("runs/a", Profile(nodes=2, time="2"))
    at_gate(done)
    at_gate(done, 1)
    assert finish(done) == undisturbed(2)
    assert first_steps(done) == [0, GATE + 1]
    assert "near the time limit" in ends(done)[0]
    assert run_status(done.run).last_end == ends(done)[0]


def test_the_batch_script_template(
    place: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "c.yaml").write_text(to_yaml(make_config("runs/by hand")))
    (place / "pscl-hpc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pscl_hpc.cli "$@"\n')
    (place / "pscl-hpc").chmod(0o755)
    monkeypatch.setenv("PSCL_HPC", str(place / "pscl-hpc"))
    shape = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=5"]
    job = slurm("sbatch", "--parsable", *shape, str(SCRIPT.parent / "pretrain.sbatch"), "c.yaml")
    eventually(
        "the job is done", lambda: "COMPLETED" in slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")
    )
    weights = (place / "runs" / "by hand" / "trunk.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == undisturbed(2)

"""A node that cannot write into the run folder is named, and avoided by the next start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.submission import submit
from pscl_hpc.runs import RunFolder
from tests.slurm.conftest import Cluster, ends, finish, make_config, slurm


def test_a_node_without_the_run_folder_is_avoided(
    place: Path, cluster: Cluster, undisturbed: Callable[[int], str]
) -> None:
    config = make_config("runs/a")
    RunFolder.reserve(config)
    run = (place / "runs" / "a").absolute()
    (run / "jobs").mkdir()
    # On n1 the run folder is read-only, but Slurm can write its logs.
    script = (
        'mkdir /dev/shm/jobs && mount --bind "$1/jobs" /dev/shm/jobs && mount --bind "$1" "$1"'
        ' && mount -o remount,ro,bind "$1" && mount --bind /dev/shm/jobs "$1/jobs"'
    )
    undo = 'umount "$1/jobs" "$1" /dev/shm/jobs && rmdir /dev/shm/jobs'
    cluster("inside", "n1", "sh", "-c", script, "sh", str(run))
    try:
        done = submit(config, cluster="slurm", profile=Profile(time="20", sbatch={"comment": "mine"}))
        assert finish(done) == undisturbed(1)
        facts = slurm("scontrol", "show", "job", "--oneliner", done.job.job)
        assert "ExcNodeList=n1" in facts
        assert "Comment=mine" in facts
        attempts = RunFolder.load(done.run).attempts
        assert [attempt["node"] for attempt in attempts] == ["n2"], ends(done)
        found = (run / "jobs" / f"{done.job.job}.0.end").read_text().splitlines()
        assert found[0] == "node"
        assert found[1].startswith("node n1: cannot write into")
        assert found[2] == "n1"
    finally:
        cluster("inside", "n1", "sh", "-c", undo, "sh", str(run))

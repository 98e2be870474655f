"""What goes wrong on clusters in the first month, on a real Slurm: full disks, races, files that are gone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.errors import UserError
from pscl_hpc.launch import stage_job
from pscl_hpc.launch.control import cancel, requeue
from pscl_hpc.launch.ends import EXIT_FULL
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import job_records
from pscl_hpc.launch.status import run_status
from pscl_hpc.launch.submission import submit
from pscl_hpc.runs import RunFolder

from .conftest import (
    Cluster,
    at_gate,
    ended,
    ends,
    eventually,
    finish,
    log_of,
    make_config,
    ranks_on,
    slurm,
    start,
)

pytestmark = pytest.mark.usefixtures("place")
Undisturbed = Callable[[int], str]
FORK = multiprocessing.get_context("fork")


def fill(file: Path) -> None:
    """Write a file until the disk is full."""
    with file.open("wb", buffering=0) as handle:
        while True:
            handle.write(b"x" * 4096)


def test_a_job_on_a_full_disk_ends_with_the_reason_and_resumes_when_there_is_room(
    cluster: Cluster, undisturbed: Undisturbed
) -> None:
    disk = Path(cluster.environment["CLUSTER_DIR"]) / "small"
    done = start(str(disk / "run"), Profile(time="20", retries=3))
    at_gate(done)
    filler = disk / "filler"
    with pytest.raises(OSError, match="space"):
        fill(filler)
    (done.run / "gate").unlink()
    assert ended(done) == f"FAILED|{EXIT_FULL}:0"
    assert log_of(done).count("rank 0 of 1 on") == 1, "not requeued"
    found = run_status(done.run)
    assert (found.state, "No space left on device" in found.detail) == ("failed", True), found
    assert "No space left" in slurm("scontrol", "show", "job", "--oneliner", done.job.job) + log_of(done)
    filler.unlink()
    requeue(done.run)
    assert finish(done) == undisturbed(1)


def test_a_run_whose_archive_is_gone_after_a_requeue_says_so(place: Path, undisturbed: Undisturbed) -> None:
    done = start("runs/a", Profile(time="20"))
    at_gate(done)
    (place / "a.h5").rename(place / "away.h5")
    requeue(done.run)
    assert ended(done) == "FAILED|2:0"
    found = run_status(done.run)
    assert (found.state, "a.h5" in found.detail) == ("failed", True), found
    (place / "away.h5").rename(place / "a.h5")
    requeue(done.run)
    assert finish(done) == undisturbed(1)


def _submit(answers: Any, together: Any) -> None:
    together.wait()
    try:
        done = submit(
            make_config("runs/a"), cluster="slurm", profile=Profile(time="20", sbatch={"begin": "now+1hour"})
        )
    except UserError as error:
        answers.put(str(error))
    else:
        answers.put(done.job)


def test_one_of_four_submissions_at_once_wins(place: Path) -> None:
    answers, together = FORK.Queue(), FORK.Barrier(4)
    processes = [FORK.Process(target=_submit, args=(answers, together)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=240) for _ in processes]
    for process in processes:
        process.join()
    (job,) = (answer for answer in found if not isinstance(answer, str))
    assert [f"job {job.job} is working on it" in answer for answer in found if answer != job] == [True] * 3
    assert [record.job for record in job_records(place / "runs" / "a")] == [job.job]
    assert slurm("squeue", "--noheader", "--format", "%i").split() == [job.job]
    assert cancel(place / "runs" / "a").state == "stopped"


def test_a_refused_submission_leaves_nothing_and_is_told_once(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        submit(make_config("runs/a"), cluster="slurm", profile=Profile(time="5", partition="nope"))
    assert str(caught.value).count("nvalid partition") == 1
    assert "nvalid" not in capfd.readouterr().err
    assert not (place / "runs" / "a").exists()


def test_restarts_count_without_progress_on_other_nodes_and_show_no_old_pace(
    undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stage_job.STAGES, "pretrain", "gated_stage:die_often")
    config = make_config("runs/a")
    RunFolder.reserve(config)
    (Path("runs/a") / "gate").touch()
    done = submit(config, cluster="slurm", profile=Profile(time="20", retries=1))
    eventually("it has reached step 5", lambda: run_status(done.run).step == 5)
    (first,) = (node for node in ("n1", "n2", "n3") if ranks_on(done, node))
    (done.run / "gate").unlink()
    eventually("it died", lambda: (done.run / "jobs" / f"{done.job.job}.failures").exists())
    found = run_status(done.run)
    if len(RunFolder.load(done.run).attempts) == 1:
        assert found.state in ("queued", "starting"), found
        assert (found.images_per_second, found.eta_s) == (None, None)
    # Two crashes with one retry, but each after a new checkpoint.
    assert finish(done) == undisturbed(1)
    assert len(ends(done)) == 2
    assert all(f"on {first} " in end for end in ends(done)[:1]), ends(done)
    assert f"ExcNodeList={first}" in slurm("scontrol", "show", "job", "--oneliner", done.job.job)
    attempts = RunFolder.load(done.run).attempts
    assert first not in [attempt["node"] for attempt in attempts[1:]]

"""The jobs of a study; the scheduler is a dictionary in memory."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from pscl_hpc.config import RunConfig
from pscl_hpc.errors import UserError
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.schedulers import JobState
from pscl_hpc.results.study import StudyResults
from pscl_hpc.runs import RunFolder
from pscl_hpc.study import job_pool
from pscl_hpc.study.config import StudyConfig
from pscl_hpc.study.job_pool import ENTRY, JobPool
from pscl_hpc.study.plan import Job
from pscl_hpc.study.run import look, run_study

from .material import fabricate, small_study


class Cluster:
    """A cluster in memory: a job has ended when the pool asks about it for the second time."""

    def __init__(self) -> None:
        self.name: Literal["inline", "local", "slurm"] = "local"
        self.arrays: list[list[str]] = []
        self.gpus: list[str | None] = []
        self.attached: int | None = None
        self.refused: tuple[str, ...] = ()
        self.broken: tuple[str, ...] = ()
        self.unscored: tuple[str, ...] = ()
        self.silent = 0
        self.states: dict[str, int] = {}
        self.configs: dict[str, RunConfig] = {}

    def submit_many(self, configs: Sequence[RunConfig], **options: Any) -> None:
        assert options["entry"] == ENTRY
        for config in configs:
            if any(word in config.run for word in self.refused):
                raise UserError(f"no place for {Path(config.run).name}")
        self.arrays.append([config.run for config in configs])
        self.gpus.append(options["profile"].environment.get("CUDA_VISIBLE_DEVICES"))
        self.attached = options["attached"]
        for config in configs:
            RunFolder.reserve(config).update(status="queued", error="")
            self.states[config.run], self.configs[config.run] = 0, config

    def latest_job(self, run: Path) -> Any:
        if str(run) not in self.states:
            return None
        return SimpleNamespace(run=str(run), cluster=self.name, log=lambda run: run / "rank.log")

    def state(self, job: Any) -> Any:
        if self.silent and self.states[job.run]:
            self.silent -= 1
            return JobState("unknown")
        self.states[job.run] += 1
        if self.states[job.run] < 2:
            return JobState("pending")
        if self.states[job.run] == 2:
            if any(word in job.run for word in self.unscored):
                fabricate(self.configs[job.run], {})
                (Path(job.run) / "evaluation.json").unlink()
                (Path(job.run) / "rank.log").write_text("at work\nerror: the scale broke\n\n")
            elif any(word in job.run for word in self.broken):
                RunFolder.load(job.run).update(status="failed", error="the node burnt")
            else:
                fabricate(self.configs[job.run], {})
        return JobState("ended")


@pytest.fixture(params=["local", "slurm"])
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    made.name = request.param
    monkeypatch.setattr(job_pool, "submit_many", made.submit_many)
    monkeypatch.setattr(job_pool, "latest_job", made.latest_job)
    monkeypatch.setattr(job_pool, "check_resources", lambda cluster, profile: None)
    monkeypatch.setattr(job_pool, "SCHEDULERS", {"local": made, "slurm": made, "inline": made})
    for name in ("_SLURM_ASK_S", "_LOOK_S", "_SHARED_DISK_S"):
        monkeypatch.setattr(job_pool, name, 0.0)
    monkeypatch.setattr("pscl_hpc.study.schedule.POLL_S", 0)
    return made


def run(archive: Path, folder: Path, cluster: Cluster) -> StudyResults:
    study = small_study(archive, folder)
    executor = JobPool(cluster.name, Profile(), study.folder, study.name)
    return run_study(study, executor, jobs=100, progress=False)[1]


def prepared_jobs(study: StudyConfig) -> list[Job]:
    """The pretrainings of a study, with their run folders."""
    jobs = [job for job in look(study).missing if not job.needs]
    for job in jobs:
        RunFolder.reserve(job.config)
    return jobs


def test_jobs_that_can_start_together_are_one_array(archive: Path, tmp_path: Path, cluster: Cluster) -> None:
    results = run(archive, tmp_path / "study", cluster)
    assert results.scored == 9
    first = [Path(run).parts[-2:] for run in cluster.arrays[0]]
    # Pretrainings, and the fine-tunings that need none.
    assert [kind for kind, _ in first] == ["pretrain"] * 4 + ["finetune"] * 3
    assert all("scratch" in name for kind, name in first if kind == "finetune")
    assert sum(map(len, cluster.arrays)) == 13


def test_a_job_that_ends_without_its_result_has_failed(
    archive: Path, tmp_path: Path, cluster: Cluster
) -> None:
    cluster.broken = ("simclr--",)
    results = run(archive, tmp_path / "study", cluster)
    # All pretrainings have a folder of such a name: what is left are the fine-tunings from random weights.
    assert {item.reason for item in results.failed if item.state == "failed"} == {"the node burnt"}
    assert results.scored == 3


def test_a_silent_scheduler_does_not_end_a_job(archive: Path, tmp_path: Path, cluster: Cluster) -> None:
    cluster.silent = 20
    results = run(archive, tmp_path / "study", cluster)
    assert (results.scored, results.failed, cluster.silent) == (9, (), 0)


def test_the_reason_of_a_failure_after_the_run_is_the_last_error_in_the_log(
    archive: Path, tmp_path: Path, cluster: Cluster
) -> None:
    cluster.unscored = ("alloy--t1--scratch",)
    results = run(archive, tmp_path / "study", cluster)
    assert [item.reason for item in results.failed] == ["the scale broke"]
    assert results.scored == 8


def test_a_refused_job_does_not_prevent_the_others(archive: Path, tmp_path: Path, cluster: Cluster) -> None:
    cluster.refused = ("alloy--t1--scratch",)
    results = run(archive, tmp_path / "study", cluster)
    assert [item.state for item in results.failed] == ["failed"]
    assert "no place for alloy--t1--scratch" in results.failed[0].reason
    assert results.scored == 8


def test_a_job_that_is_already_running_is_waited_for(archive: Path, tmp_path: Path, cluster: Cluster) -> None:
    """The command was stopped and is given again."""

    class Stopped(JobPool):
        def poll(self) -> dict[str, Any]:
            if cluster.arrays:
                raise KeyboardInterrupt
            return super().poll()

    study = small_study(archive, tmp_path / "study")
    executor = Stopped(cluster.name, Profile(), study.folder, study.name)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, executor, jobs=100, progress=False)
    assert len(cluster.arrays) == 1
    assert run(archive, tmp_path / "study", cluster).scored == 9
    submitted = [run for array in cluster.arrays for run in array]
    assert len(submitted) == len(set(submitted)) == 13


def test_a_job_that_fails_under_another_command_is_tried_again(
    archive: Path, tmp_path: Path, cluster: Cluster
) -> None:
    study = small_study(archive, tmp_path / "study")
    pool = JobPool(cluster.name, Profile(), study.folder, study.name)
    job = prepared_jobs(study)[0]
    cluster.broken = (job.folder.name,)
    cluster.submit_many([job.config], entry=ENTRY, profile=Profile(), attached=None)
    pool.start(job)
    while (outcome := pool.poll().get(job.key)) is None:
        if len(cluster.arrays) == 2:
            cluster.broken = ()
    assert outcome.state == "done"
    assert cluster.arrays == [[job.config.run]] * 2


@pytest.mark.parametrize("cluster", ["inline"], indirect=True)
def test_inline_jobs_are_spread_over_the_gpus_and_attached(
    archive: Path, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_pool, "visible_gpus", lambda count: ["4", "7"])
    study = small_study(archive, tmp_path / "study")
    pool = JobPool("inline", Profile(), study.folder, study.name)
    jobs = prepared_jobs(study)
    for job in jobs[:5]:
        pool.start(job)
    pool.poll()
    assert cluster.gpus == ["4", "7", "4", "7", "4"]
    # A GPU whose job has ended is the next one's.
    monkeypatch.setattr(job_pool, "_is_alive", lambda job: job is not jobs[1])
    monkeypatch.setattr(Job, "is_done", lambda job: job is jobs[1])
    assert list(pool.poll()) == [jobs[1].key]
    pool.start(jobs[5])
    pool.poll()
    assert cluster.gpus[-1] == "7"

    assert cluster.attached is not None
    monkeypatch.setattr(job_pool, "wait_for_end", lambda record, seconds: True)
    assert not select.select([cluster.attached], [], [], 0)[0]
    pool.stop()
    assert os.read(cluster.attached, 1) == b"", "the jobs see the end of their input"


def test_a_job_of_many_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 processes"):
        JobPool("local", Profile(tasks_per_node=4), tmp_path, "study")

"""Jobs of a cluster, with its scheduler played by a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pscl_hpc.config import Config
from pscl_hpc.errors import UserError
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.results.study import StudyResults
from pscl_hpc.runs import RunFolder
from pscl_hpc.study import cluster_executor
from pscl_hpc.study.cluster_executor import ENTRY, ClusterJobs
from pscl_hpc.study.run import run_study

from .material import fabricate, small_study


class Cluster:
    """What launch offers, in memory: a job is done when it is asked about for the second time."""

    def __init__(self) -> None:
        self.arrays: list[list[str]] = []
        self.refused: tuple[str, ...] = ()
        self.broken: tuple[str, ...] = ()
        self.unscored: tuple[str, ...] = ()
        self.silent = 0
        self.states: dict[str, int] = {}
        self.configs: dict[str, Config] = {}

    def submit_many(self, configs: Sequence[Config], **options: Any) -> None:
        assert options["entry"] == ENTRY
        for config in configs:
            if any(word in config.run for word in self.refused):
                raise UserError(f"no place for {Path(config.run).name}")
        self.arrays.append([config.run for config in configs])
        for config in configs:
            RunFolder.reserve(config).update(status="queued", error="")
            self.states[config.run], self.configs[config.run] = 0, config

    def latest_job(self, run: Path) -> Any:
        if str(run) not in self.states:
            return None
        return SimpleNamespace(run=str(run), cluster="local", log=lambda run: run / "rank.log")

    def state(self, job: Any) -> Any:
        if self.silent and self.states[job.run]:
            self.silent -= 1
            return SimpleNamespace(phase="unknown")
        self.states[job.run] += 1
        if self.states[job.run] < 2:
            return SimpleNamespace(phase="pending")
        if self.states[job.run] == 2:
            if any(word in job.run for word in self.unscored):
                fabricate(self.configs[job.run], {})
                (Path(job.run) / "evaluation.json").unlink()
                (Path(job.run) / "rank.log").write_text("at work\nerror: the scale broke\n\n")
            elif any(word in job.run for word in self.broken):
                RunFolder.load(job.run).update(status="failed", error="the node burnt")
            else:
                fabricate(self.configs[job.run], {})
        return SimpleNamespace(phase="ended")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(cluster_executor, "submit_many", made.submit_many)
    monkeypatch.setattr(cluster_executor, "latest_job", made.latest_job)
    monkeypatch.setattr(cluster_executor, "SCHEDULERS", {"local": made})
    monkeypatch.setattr(cluster_executor, "_ASK_S", {"local": 0.0})
    monkeypatch.setattr(cluster_executor, "_LOOK_S", 0.0)
    monkeypatch.setattr("pscl_hpc.study.schedule.POLL_S", 0)
    return made


def run(archive: Path, folder: Path) -> StudyResults:
    study = small_study(archive, folder)
    executor = ClusterJobs("local", Profile(), study.folder, study.name)
    return run_study(study, executor, jobs=100, progress=False)[1]


def test_what_can_start_together_is_one_array(archive: Path, tmp_path: Path, cluster: Cluster) -> None:
    results = run(archive, tmp_path / "study")
    assert results.scored == 9
    first = [Path(run).parts[-2:] for run in cluster.arrays[0]]
    # Pretrainings, and the fine-tunings that need none.
    assert [kind for kind, _ in first] == ["pretrain"] * 4 + ["finetune"] * 3
    assert all("scratch" in name for kind, name in first if kind == "finetune")
    assert sum(map(len, cluster.arrays)) == 13


def test_a_job_that_ends_without_its_product_has_failed_with_its_reason(
    archive: Path, tmp_path: Path, cluster: Cluster
) -> None:
    cluster.broken = ("simclr--",)
    results = run(archive, tmp_path / "study")
    # All pretrainings have a folder of such a name: what is left are the fine-tunings from random weights.
    assert {item.reason for item in results.failed if item.state == "failed"} == {"the node burnt"}
    assert results.scored == 3


def test_a_scheduler_that_does_not_answer_for_a_while_ends_no_job(
    archive: Path, tmp_path: Path, cluster: Cluster
) -> None:
    cluster.silent = 20
    results = run(archive, tmp_path / "study")
    assert (results.scored, results.failed, cluster.silent) == (9, (), 0)


def test_a_job_that_fails_after_its_run_has_its_last_words_for_a_reason(
    archive: Path, tmp_path: Path, cluster: Cluster
) -> None:
    cluster.unscored = ("alloy--t1--scratch",)
    results = run(archive, tmp_path / "study")
    assert [item.reason for item in results.failed] == ["the scale broke"]
    assert results.scored == 8


def test_one_that_is_refused_does_not_keep_the_others_back(
    archive: Path, tmp_path: Path, cluster: Cluster
) -> None:
    cluster.refused = ("alloy--t1--scratch",)
    results = run(archive, tmp_path / "study")
    assert [item.state for item in results.failed] == ["failed"]
    assert "no place for alloy--t1--scratch" in results.failed[0].reason
    assert results.scored == 8


def test_a_job_that_is_at_work_is_waited_for(archive: Path, tmp_path: Path, cluster: Cluster) -> None:
    """As when the command was stopped and is given again."""

    class Stopped(ClusterJobs):
        def poll(self) -> dict[str, Any]:
            if cluster.arrays:
                raise KeyboardInterrupt
            return super().poll()

    study = small_study(archive, tmp_path / "study")
    executor = Stopped("local", Profile(), study.folder, study.name)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, executor, jobs=100, progress=False)
    assert len(cluster.arrays) == 1
    assert run(archive, tmp_path / "study").scored == 9
    submitted = [run for array in cluster.arrays for run in array]
    assert len(submitted) == len(set(submitted)) == 13


def test_a_job_of_many_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one process each, but the profile asks for 4"):
        ClusterJobs("local", Profile(tasks_per_node=4), tmp_path, "study")

"""Pixel classifiers as entries of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.config import load_config
from pscl_hpc.errors import UserError
from pscl_hpc.report import write_report
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.study.plan import Job
from pscl_hpc.study.run import look, run_study
from pscl_hpc.study.schedule import Outcome
from pscl_hpc.study.stage import run_stage

from .material import NONE, Fabricator, plan_of, small_study

FILTERS: dict[str, Any] = {
    "features": {"name": "filters", "sigmas": [1.0], "medians": [3]},
    "head": {"steps": 20},
    "runtime": {"device": "cpu", "threads": 1},
}
TREES = {**FILTERS, "head": {"name": "forest", "trees": 3}}
TRUNK = {
    "features": {"name": "trunk", "strides": [1, 2], "filters": None},
    "head": {"name": "linear", "steps": 5},
}
SIMCLR = {"method": {"name": "simclr"}}


class InProcess(Fabricator):
    """An executor that trains classifiers here, and makes up other runs."""

    def start(self, job: Job) -> None:
        if isinstance(job.config, ClassifierConfig):
            self.started.append(job.label)
            run_stage(job.config)
            self._new[job.key] = Outcome("done")
        else:
            super().start(job)


def test_classifiers_are_scored_beside_networks(archive: Path, tmp_path: Path) -> None:
    methods = [NONE, {"name": "filters", "classifier": FILTERS}, {"name": "trees", "classifier": TREES}]
    changes = {"methods": methods, "datasets": [{"name": "alloy", "references": ["alloy/t0"]}]}
    study = small_study(archive, tmp_path / "study", compare=["filters"], **changes)
    executor = InProcess()
    state, results = run_study(study, executor, jobs=1, progress=False)
    assert state.missing == []
    assert len(executor.started) == 3
    lines = {line.method: line for line in results.table if line.split == "test"}
    assert set(lines) == {"none", "filters", "trees"}
    assert all(lines[name].mean_dice.mean > 0.5 for name in ("filters", "trees"))
    assert all(
        {"classifier", "evaluate"} <= row.seconds.keys() for row in results.rows if row.method == "trees"
    )
    assert any((line.method, line.baseline) == ("trees", "filters") for line in results.comparisons)
    # Heads with the same features share them: the reference and the three test images are computed once.
    assert len(list((study.folder / "features").rglob("*.safetensors"))) == 4
    # Nothing is repeated, and another study takes the finished runs.
    again = InProcess()
    run_study(study, again, jobs=1, progress=False)
    assert again.started == []
    other = small_study(archive, tmp_path / "other", reuse=[str(study.folder)], **changes)
    assert len(look(other).elsewhere) == 3
    run_study(other, again, jobs=1, progress=False)
    assert again.started == []
    copied = next((other.folder / "classifier").iterdir())
    config = load_config(copied / "config.yaml")
    assert isinstance(config, ClassifierConfig)
    assert config.cache == str(other.folder / "features")
    page = write_report([study.folder]).path.read_text(encoding="utf-8")
    assert "trees" in page


def test_a_classifier_can_have_a_pretrained_trunk(archive: Path, tmp_path: Path) -> None:
    methods = [
        {"name": "simclr", "pretrain": SIMCLR},
        {"name": "frozen", "pretrain": SIMCLR, "classifier": TRUNK},
    ]
    plan = plan_of(archive, tmp_path, methods=methods)
    cells = {cell.method: cell for cell in plan.cells}
    assert cells["frozen"].pretraining == cells["simclr"].pretraining
    job = plan.jobs[cells["frozen"].key]
    assert job.needs == cells["simclr"].pretraining
    assert isinstance(job.config, ClassifierConfig)
    assert job.config.pretrained == str(plan.jobs[job.needs].folder)
    assert job.folder.parent.name == "classifier"


def test_the_cache_is_not_part_of_a_run(archive: Path, tmp_path: Path) -> None:
    keys = {}
    for name in ("a", "b"):
        plan = plan_of(archive, tmp_path / name, methods=[{"name": "filters", "classifier": FILTERS}])
        keys[name] = [cell.key for cell in plan.cells]
    assert keys["a"] == keys["b"]


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"classifier": FILTERS, "finetune": {"crop": [32, 32]}}, "both"),
        ({"classifier": {**FILTERS, "sigmas": [1]}}, "sigmas"),
        ({"classifier": "nothing.yaml"}, "nothing.yaml"),
        ({"classifier": 3}, "classifier"),
        ({"classifier": TRUNK}, r"features\.model"),
        ({"finetune": {}}, "pretrain"),
    ],
)
def test_wrong_entries_are_named(entry: dict[str, Any], named: str, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        plan_of(archive, tmp_path, methods=[{"name": "entry", **entry}])


def test_a_failed_classifier_is_named(archive: Path, tmp_path: Path) -> None:
    methods = [{"name": "filters", "classifier": FILTERS}]
    study = small_study(archive, tmp_path / "study", methods=methods)
    _, results = run_study(study, Fabricator(failing=("filters",)), jobs=1, progress=False)
    assert len(results.failed) == 3
    folder = next((study.folder / "classifier").iterdir())
    assert not (folder / "run.json").exists() or not RunFolder.load(folder).done

"""What a job of a study does with an archive that is not the planned one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pscl_hpc import segmentation
from pscl_hpc.config import load_config
from pscl_hpc.errors import UserError
from pscl_hpc.runs import RunFolder
from pscl_hpc.study.plan import Job
from pscl_hpc.study.run import look, run_study
from pscl_hpc.study.stage import is_done, run_stage

from .material import Fabricator, small_study, write_archive


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "a.h5")


@pytest.fixture
def jobs(path: Path, tmp_path: Path) -> dict[str, Job]:
    """A pretraining and a fine-tuning whose folders are made and that have not begun, by kind."""
    methods = [
        {"name": "none", "pretrain": "none"},
        {"name": "simclr", "pretrain": {"method": {"name": "simclr"}}},
    ]
    datasets = [{"name": "alloy", "references": ["alloy/t0"]}]
    study = small_study(path, tmp_path / "study", methods=methods, datasets=datasets)
    run_study(study, Fabricator(failing=("pretraining", "none")), jobs=1, progress=False)
    return {job.config.kind: job for job in look(study).missing if not job.needs}


def run(job: Job) -> None:
    run_stage(load_config(job.folder / "config.yaml").model_copy(update={"run": str(job.folder)}))


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_it_does_not_start_on_another_archive(path: Path, jobs: dict[str, Job], kind: str) -> None:
    job = jobs[kind]
    write_archive(path, twin="other/1")
    before = sorted(job.folder.iterdir())
    with pytest.raises(UserError, match=r"a\.h5"):
        run(job)
    assert sorted(job.folder.iterdir()) == before


def test_it_does_not_score_on_an_archive_that_came_during_the_training(
    path: Path, jobs: dict[str, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def finetune(*arguments: object) -> object:
        folder = real(*arguments)
        write_archive(path, twin="other/1")
        return folder

    real: Callable[..., object] = segmentation.finetune
    monkeypatch.setattr(segmentation, "finetune", finetune)
    job = jobs["finetune"]
    with pytest.raises(UserError, match=r"a\.h5"):
        run(job)
    assert RunFolder.load(job.folder).done
    assert not (job.folder / "evaluation.json").exists()
    # Restored: what is left is done.
    monkeypatch.setattr(segmentation, "finetune", real)
    write_archive(path)
    run(job)
    assert is_done(job.folder, "finetune", job.fingerprint, job.tests)
    # Scored on other splits since.
    segmentation.evaluate(job.folder, splits=["val"])
    assert not is_done(job.folder, "finetune", job.fingerprint, job.tests)
    run(job)
    assert is_done(job.folder, "finetune", job.fingerprint, job.tests)
    assert not is_done(job.folder, "finetune", "another", job.tests)

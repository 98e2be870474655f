"""Finished runs of other studies are copied and not repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pscl_hpc.cli.main import app
from pscl_hpc.config import load_config
from pscl_hpc.results.evaluation import read_evaluation
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.study.config import study_yaml
from pscl_hpc.study.reuse import copy_run
from pscl_hpc.study.run import STUDY_FILE, look, run_study

from .material import Fabricator, small_study, study_file


@pytest.fixture
def first(archive: Path, tmp_path: Path) -> Path:
    """A finished study of one data set with three annotated images."""
    folder = tmp_path / "first"
    run_study(small_study(archive, folder), Fabricator(), jobs=1, progress=False)
    return folder


def test_the_same_runs_are_copied_and_the_others_done(archive: Path, tmp_path: Path, first: Path) -> None:
    study = small_study(
        archive, tmp_path / "second", name="second", reuse=[str(first)], budgets=[1, 2], seeds=[10, 11]
    )
    before = look(study)
    assert len(before.elsewhere) == 4 + 9
    assert not (tmp_path / "second").exists()
    executor = Fabricator()
    state, results = run_study(study, executor, jobs=1, progress=False)
    assert not state.missing
    assert not state.elsewhere
    assert not any("budget 1 seed 10" in label for label in executor.started)
    assert len(executor.started) == len(state.plan.jobs) - 13
    # The copy is on its own: the other study may go.
    shutil.rmtree(first)
    again = Fabricator()
    assert run_study(study, again, jobs=1, progress=False)[1].rows == results.rows
    assert again.started == []
    for job in state.plan.jobs.values():
        assert load_config(job.folder / "config.yaml") == job.config
        if isinstance(job.config, FinetuneConfig):
            assert read_evaluation(job.folder / "evaluation.json").pretrained == job.config.pretrained


def test_scores_of_copies_are_those_of_the_originals(archive: Path, tmp_path: Path, first: Path) -> None:
    study = small_study(archive, tmp_path / "second", reuse=[str(first)])
    _, results = run_study(study, Fabricator(), jobs=1, progress=False)
    original = json.loads((first / "results.json").read_text())
    assert results.model_dump(mode="json")["rows"] == original["rows"]


def test_a_folder_that_is_not_there_has_no_runs(archive: Path, tmp_path: Path) -> None:
    assert look(small_study(archive, tmp_path / "second", reuse=[str(tmp_path / "no")])).elsewhere == {}


def test_a_run_with_a_changed_configuration_is_not_taken(archive: Path, tmp_path: Path, first: Path) -> None:
    study = small_study(archive, tmp_path / "second", reuse=[str(first)])
    job = next(iter(look(study).plan.jobs.values()))
    config = first / job.folder.parent.name / job.folder.name / "config.yaml"
    text = config.read_text()
    assert "steps: 4" in text
    config.write_text(text.replace("steps: 4", "steps: 5"))
    found = look(study).elsewhere
    assert len(found) == 12
    assert job.key not in found
    config.write_text("- no configuration")
    assert look(study).elsewhere == found


def test_an_unfinished_run_is_not_taken(archive: Path, tmp_path: Path, first: Path) -> None:
    evaluation = next((first / "finetune").rglob("evaluation.json"))
    evaluation.unlink()
    assert len(look(small_study(archive, tmp_path / "second", reuse=[str(first)])).elsewhere) == 12


def test_a_run_of_another_archive_is_not_taken(archive: Path, tmp_path: Path, first: Path) -> None:
    study = small_study(archive, tmp_path / "second", reuse=[str(first)])
    trunk = next((first / "pretrain").glob("*/run.json"))
    trunk.write_text(json.dumps({**json.loads(trunk.read_text()), "archive": "another"}))
    scores = next((first / "finetune").glob("*/evaluation.json"))
    scores.write_text(json.dumps({**json.loads(scores.read_text()), "archive": "another"}))
    found = look(study).elsewhere.values()
    assert len(found) == 11
    assert not {trunk.parent, scores.parent} & set(found)


def test_runs_that_began_here_are_resumed_here(archive: Path, tmp_path: Path, first: Path) -> None:
    study = small_study(archive, tmp_path / "second", reuse=[str(first)])
    job = look(study).missing[0]
    job.folder.mkdir(parents=True)
    (study.folder / STUDY_FILE).write_text(study_yaml(study))
    assert job.key not in look(study).elsewhere


def test_a_copy_holds_files_and_predictions_alone(archive: Path, tmp_path: Path, first: Path) -> None:
    study = small_study(archive, tmp_path / "second", reuse=[str(first)])
    state = look(study)
    key, source = next(iter(state.elsewhere.items()))
    (source / "checkpoints").mkdir(exist_ok=True)
    (source / "checkpoints" / "step-1.pt").write_bytes(b"x")
    for split in ("test", "test_ood"):
        (source / "predictions" / split).mkdir(parents=True)
        (source / "predictions" / split / "a.png").write_bytes(b"x")
    for folder in (source, source / "predictions" / "test"):
        (folder / "link").symlink_to(archive)
    job = state.plan.jobs[key]
    copy_run(job, source)
    there = {str(path.relative_to(job.folder)) for path in job.folder.rglob("*")}
    assert {"config.yaml", "run.json", "predictions/test/a.png", "predictions/test_ood/a.png"} <= there
    assert not {name for name in there if name.startswith(("checkpoints", "run.lock", "attempts"))}
    assert not {name for name in there if name.endswith("link")}
    assert not [path for path in job.folder.parent.iterdir() if path.name.startswith(".")]


def test_a_copy_that_fails_leaves_nothing(
    archive: Path, tmp_path: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(archive, tmp_path / "second", reuse=[str(first)])
    state = look(study)
    key, source = next(iter(state.elsewhere.items()))
    job = state.plan.jobs[key]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pscl_hpc.study.reuse.write_text", full)
    with pytest.raises(OSError, match="No space"):
        copy_run(job, source)
    assert list(job.folder.parent.iterdir()) == []


def test_a_dry_run_says_what_is_finished_elsewhere(archive: Path, tmp_path: Path, first: Path) -> None:
    file = study_file(archive, tmp_path / "second", reuse=[str(first)], seeds=[10, 11])
    result = CliRunner().invoke(app, ["study", str(file), "--dry-run"])
    assert result.exit_code == 0
    assert f"none: finished in {first / 'finetune'}" in result.stdout
    assert "finetune: 18 runs, 18 missing, 9 of these finished elsewhere" in result.stdout

"""Which jobs a study starts with executors that make runs up: nothing twice, nothing lost, nothing of others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.config import load_config
from pscl_hpc.errors import UserError
from pscl_hpc.report.study_text import TABLE_FILE
from pscl_hpc.results.study import read_results
from pscl_hpc.study.gather import gather
from pscl_hpc.study.run import STUDY_FILE, look
from pscl_hpc.study.schedule import Outcome

from .material import NONE, Fabricator, run, small_study


def test_what_is_done_is_never_done_again(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study")
    first, again = Fabricator(), Fabricator()
    results = run(study, first)
    assert len(first.started) == 4 + 9
    assert (results.scored, results.runs, results.missing, results.failed) == (9, 9, (), ())
    assert run(study, again).rows == results.rows
    assert again.started == []
    assert look(study).missing == []


def test_a_study_that_has_grown_does_what_is_new(archive: Path, tmp_path: Path) -> None:
    run(small_study(archive, tmp_path / "study"), Fabricator())
    more = Fabricator()
    results = run(small_study(archive, tmp_path / "study", seeds=[10, 11]), more)
    assert len(more.started) == 4 + 9
    assert all("seed 11" in label for label in more.started)
    assert results.scored == 18


def test_a_changed_setting_is_another_run_and_the_old_one_stays(archive: Path, tmp_path: Path) -> None:
    run(small_study(archive, tmp_path / "study"), Fabricator())
    before = sorted(path for path in (tmp_path / "study").rglob("evaluation.json"))
    changed = Fabricator()
    small = {"model": {"widths": [4, 8, 8]}, "crop": [32, 32], "batch_size": 2}
    results = run(
        small_study(archive, tmp_path / "study", finetune={**small, "schedule": {"steps": 5}}), changed
    )
    assert len(changed.started) == 9
    assert not any(label.startswith("pretraining") for label in changed.started)
    assert results.scored == 9
    assert all(path.exists() for path in before)


def test_a_failure_is_named_and_stays_alone_and_is_tried_again(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study")
    broken = Fabricator(failing=("pretraining pscl t1", "t2 budget 1 seed 10 none"))
    results = run(study, broken)
    reasons = {item.job: (item.state, item.reason) for item in results.failed}
    assert reasons == {
        "pretraining pscl t1 seed 10": ("failed", "it was about pretraining pscl t1"),
        "alloy t1 budget 1 seed 10 pscl": (
            "skipped",
            "its pretraining failed: it was about pretraining pscl t1",
        ),
        "alloy t2 budget 1 seed 10 none": ("failed", "it was about t2 budget 1 seed 10 none"),
    }
    assert (results.scored, len(results.missing)) == (7, 2)
    assert "it was about" in (study.folder / TABLE_FILE).read_text(encoding="utf-8")
    second = Fabricator()
    results = run(study, second)
    assert sorted(second.started) == sorted(reasons)
    assert (results.scored, results.failed) == (9, ())


def test_an_unfinished_run_is_resumed_with_its_first_configuration(archive: Path, tmp_path: Path) -> None:
    class Watching(Fabricator):
        def start(self, job: Any) -> None:
            self.every = {*getattr(self, "every", set()), job.config.log.every_steps}
            super().start(job)

    study = small_study(archive, tmp_path / "study")
    run(study, Watching(failing=("alloy",)))
    second = Watching()
    small = {"model": {"widths": [4, 8, 8]}, "crop": [32, 32], "batch_size": 2, "schedule": {"steps": 4}}
    run(small_study(archive, tmp_path / "study", finetune={**small, "log": {"every_steps": 3}}), second)
    assert second.every == {10}


def test_an_unfinished_run_is_resumed_after_its_archive_and_study_were_moved(
    archive: Path, tmp_path: Path
) -> None:
    shutil.copy(archive, tmp_path / "a.h5")
    run(small_study(tmp_path / "a.h5", tmp_path / "study"), Fabricator(failing=("alloy",)))
    (tmp_path / "a.h5").rename(tmp_path / "b.h5")
    (tmp_path / "study").rename(tmp_path / "moved")
    study = small_study(tmp_path / "b.h5", tmp_path / "moved")
    begun = look(study).missing
    assert len(begun) == 9
    assert run(study, Fabricator()).scored == 9
    for job in begun:
        assert load_config(job.folder / "config.yaml") == job.config


def test_a_run_whose_configuration_was_edited_is_not_taken_for_the_same(
    archive: Path, tmp_path: Path
) -> None:
    study = small_study(archive, tmp_path / "study")
    run(study, Fabricator(failing=("none",)))
    stored = [job.folder / "config.yaml" for job in look(study).missing]
    stored[0].write_text(stored[0].read_text().replace("batch_size: 2", "batch_size: 3"))
    results = run(study, Fabricator())
    assert len(results.failed) == 1
    assert str(stored[0]) in results.failed[0].reason


@pytest.mark.parametrize("damage", ["evaluation.json", "run.json"])
def test_a_damaged_product_is_missing(archive: Path, tmp_path: Path, damage: str) -> None:
    study = small_study(archive, tmp_path / "study")
    run(study, Fabricator())
    victim = next(study.folder.glob(f"finetune/*/{damage}"))
    victim.write_text("{")
    assert [str(job.folder) for job in look(study).missing] == [str(victim.parent)]


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_run_of_another_archive_does_not_count_and_is_named(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study", methods=[NONE])
    run(study, Fabricator())
    record = next(study.folder.glob("finetune/*/run.json"))
    assert json.loads(record.read_text())["archive"] == look(study).plan.fingerprint
    changed(record, archive="another")
    results = run(study, Fabricator())
    assert (results.scored, len(results.missing)) == (2, 1)
    assert [item.state for item in results.failed] == ["failed"]
    assert str(record.parent) in results.failed[0].reason


def test_an_interrupted_study_has_the_results_of_what_has_finished(archive: Path, tmp_path: Path) -> None:
    class Interrupted(Fabricator):
        def poll(self) -> dict[str, Outcome]:
            if self.started:
                raise KeyboardInterrupt
            return super().poll()

    study = small_study(archive, tmp_path / "study", methods=[NONE])
    with pytest.raises(KeyboardInterrupt):
        run(study, Interrupted())
    found = read_results(study.folder)
    assert (found.scored, len(found.missing)) == (2, 1)
    assert run(study, Fabricator()).scored == 3


def test_scores_of_another_archive_do_not_count_and_are_made_anew(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study", methods=[NONE])
    run(study, Fabricator())
    changed(next(study.folder.glob("finetune/*/evaluation.json")), archive="another")
    assert gather(look(study).plan, {}).scored == 2
    again = Fabricator()
    assert run(study, again).scored == 3
    assert len(again.started) == 1


def test_scores_of_other_splits_do_not_take_the_place_of_test_scores(archive: Path, tmp_path: Path) -> None:
    """``pscl-hpc evaluate --split`` replaces evaluation.json."""
    study = small_study(archive, tmp_path / "study", methods=[NONE])
    before = run(study, Fabricator())
    validated, partial, more = sorted(study.folder.glob("finetune/*/evaluation.json"))
    splits = json.loads(more.read_text())["splits"]
    changed(validated, split="val", splits={"val": splits["test"]})
    changed(partial, splits={"test": splits["test"]})
    changed(more, splits={**splits, "val": splits["test"]})
    state = look(study)
    assert {job.folder for job in state.missing} == {validated.parent, partial.parent}
    found = gather(state.plan, {})
    assert (found.scored, len(found.missing)) == (1, 2)
    assert [line.split for line in found.table] == ["test", "test_ood"]
    again = Fabricator()
    assert run(study, again).rows == before.rows
    assert len(again.started) == 2


@pytest.mark.parametrize(
    "way", [{"tta": "rotations"}, {"adapt": 0.5}, {"correct_shading": True}, {"unweighted": True}]
)
def test_scores_by_other_ways_of_inference_do_not_take_the_place_of_plain_ones(
    archive: Path, tmp_path: Path, way: dict[str, object]
) -> None:
    study = small_study(archive, tmp_path / "study", methods=[NONE])
    run(study, Fabricator())
    augmented = next(study.folder.glob("finetune/*/evaluation.json"))
    changed(augmented, **way)
    assert {job.folder for job in look(study).missing} == {augmented.parent}


def test_folders_of_others_are_left_alone(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=re.escape(f"{folder}: is not empty")):
        run(small_study(archive, folder), Fabricator())
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    run(small_study(archive, folder), Fabricator())
    with pytest.raises(UserError, match="'small'"):
        run(small_study(archive, folder, name="another"), Fabricator())
    with pytest.raises(UserError, match=STUDY_FILE):
        run(small_study(archive, folder / STUDY_FILE), Fabricator())


def test_what_a_killed_process_left_of_its_archive_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / ".123-synthetic-01234567.h5").write_bytes(b"half")
    datasets = [{"name": "synthetic_particles", "references": {"count": 1}}]
    made = {"images": 8, "size": [48, 48]}
    study = small_study("", folder, synthetic=made, datasets=datasets, methods=[NONE])
    assert len(look(study).missing) == 1


def test_two_processes_do_not_run_one_study(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study")

    class Second(Fabricator):
        def start(self, job: Any) -> None:
            with pytest.raises(UserError, match=re.escape(f"{study.folder}: another process")):
                run(study, Fabricator())
            super().start(job)

    assert run(study, Second()).scored == 9

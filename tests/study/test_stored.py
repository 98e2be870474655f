"""Runs from before a configuration had some of its keys: they are found by their content, in the folders they have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model
from typer.testing import CliRunner

from pscl_hpc.cli.main import app
from pscl_hpc.config import RunConfig, load_config, parse_yaml, read_tree, schema_of
from pscl_hpc.results.evaluation import read_evaluation
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.study.run import look
from pscl_hpc.study.stored import StoredRuns

from .material import NONE, Fabricator, run, small_study, study_file, write_archive

KINDS = ("pretrain", "finetune", "classifier")
SIMCLR = {"name": "simclr", "pretrain": {"method": {"name": "simclr"}}}
WARM = {"name": "warm", "pretrain": {"method": {"name": "simclr", "temperature": 0.4}}}
ONE = [{"name": "alloy", "references": ["alloy/t0"]}]
SMALL = {"model": {"widths": [4, 8, 8]}, "crop": [32, 32], "batch_size": 2}


class Versions:
    """Later versions of the configuration, one after the other."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._schemas: dict[str, type[RunConfig]] = {kind: schema_of(kind) for kind in KINDS}

    def add(self, **keys: Any) -> None:
        """From now on every kind of run has these keys, or these defaults of keys that it has."""
        for kind, schema in self._schemas.items():
            fields: dict[str, Any] = {key: (type(value), value) for key, value in keys.items()}
            self._schemas[kind] = create_model(schema.__name__, __base__=schema, **fields)
        self._patch.setattr("pscl_hpc.config.loading.schema_of", self._schemas.__getitem__)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Versions:
    return Versions(monkeypatch)


def edit(path: Path, **values: Any) -> None:
    """Replace entries of a JSON or YAML file."""
    path.write_text(json.dumps({**parse_yaml(path.read_text()), **values}))


def names(study: Path) -> set[str]:
    return {path.name for path in study.glob("*/*--*")}


def content(study: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (study, *study.rglob("*"))
    }


def started(archive: Path, folder: Path, **changes: Any) -> list[str]:
    """The jobs that a call of the small study starts."""
    executor = Fabricator()
    run(small_study(archive, folder, **changes), executor)
    return executor.started


def missing(archive: Path, folder: Path, **changes: Any) -> list[str]:
    """The jobs that it would start."""
    return [job.label for job in look(small_study(archive, folder, **changes)).missing]


def test_a_new_key_repeats_nothing(archive: Path, tmp_path: Path, versions: Versions) -> None:
    folder = tmp_path / "study"
    study = small_study(archive, folder, seeds=[10, 11], datasets=ONE)
    before = run(study, Fabricator())
    folders = names(folder)
    versions.add(novel=0)
    again = Fabricator()
    results = run(study, again)
    assert again.started == []
    assert names(folder) == folders
    plain = [row.model_copy(update={"key": ""}) for row in results.rows]
    assert plain == [row.model_copy(update={"key": ""}) for row in before.rows]
    assert not {row.key for row in results.rows} & {row.key for row in before.rows}
    for job in look(study).plan.jobs.values():
        assert load_config(job.folder / "config.yaml") == job.config
        if isinstance(job.config, FinetuneConfig) and job.needs:
            assert read_evaluation(job.folder / "evaluation.json").pretrained == job.config.pretrained
            assert Path(job.config.pretrained).is_dir()


def test_a_dry_run_shows_old_runs_as_done_and_leaves_the_disk_alone(
    archive: Path, tmp_path: Path, versions: Versions
) -> None:
    folder = tmp_path / "study"
    run(small_study(archive, folder), Fabricator(failing=("t2",)))
    versions.add(novel=0)
    file = study_file(archive, folder)
    before = content(folder)
    result = CliRunner().invoke(app, ["study", str(file), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["pretrain"] == {"runs": 4, "missing": 1, "finished_elsewhere": 0}
    assert shown["finetune"] == {"runs": 9, "missing": 3, "finished_elsewhere": 0}
    assert all("t2" in item["job"] for item in shown["jobs"])
    assert content(folder) == before


def test_new_runs_use_old_pretrainings_and_both_are_found_later(
    archive: Path, tmp_path: Path, versions: Versions
) -> None:
    folder = tmp_path / "study"
    changes = {"methods": [NONE, SIMCLR], "seeds": [10, 11], "datasets": ONE}
    run(small_study(archive, folder, **changes), Fabricator())
    trunks = {path.name for path in (folder / "pretrain").iterdir()}
    versions.add(novel=0)
    changes["budgets"] = [1, 2]
    more = started(archive, folder, **changes)
    assert len(more) == 4
    assert all("budget 2" in label for label in more)
    used = {Path(read_tree(path)["pretrained"]).name for path in folder.glob("finetune/*/config.yaml")}
    assert used - {""} == trunks
    folders = names(folder)
    for key in ("newer", "newest"):
        versions.add(**{key: "x"})
        assert missing(archive, folder, **changes) == []
    assert names(folder) == folders


def test_a_changed_default_repeats_what_it_concerns(
    archive: Path, tmp_path: Path, versions: Versions
) -> None:
    folder = tmp_path / "study"
    run(small_study(archive, folder, datasets=ONE), Fabricator())
    versions.add(encoder_lr_scale=0.5)
    assert len(missing(archive, folder, datasets=ONE)) == 5


def test_an_edited_run_is_not_taken_for_what_it_says(
    archive: Path, tmp_path: Path, versions: Versions
) -> None:
    folder = tmp_path / "study"
    run(small_study(archive, folder, methods=[NONE]), Fabricator())
    for path in folder.glob("finetune/*/config.yaml"):
        edit(path, schedule={**read_tree(path)["schedule"], "steps": 5})
    versions.add(novel=0)
    longer = {"methods": [NONE], "finetune": {**SMALL, "schedule": {"steps": 5}}}
    other = small_study(archive, tmp_path / "other", reuse=[str(folder)], **longer)
    assert look(other).elsewhere == {}
    assert len(missing(archive, folder, methods=[NONE])) == 3
    assert len(missing(archive, folder, **longer)) == 3


@pytest.mark.parametrize("change", ["deleted", "edited", "damaged", "replaced"])
def test_a_run_needs_its_pretraining(archive: Path, tmp_path: Path, versions: Versions, change: str) -> None:
    folder = tmp_path / "study"
    changes = {"methods": [NONE, SIMCLR, WARM], "datasets": ONE}
    run(small_study(archive, folder, **changes), Fabricator())
    trunks = {
        config["method"]["temperature"]: path.parent
        for path in folder.glob("pretrain/*/config.yaml")
        if (config := read_tree(path))
    }
    warm = trunks.pop(0.4)
    (other,) = trunks.values()
    changed = ["pretraining warm seed 10"]
    if change == "deleted":
        shutil.rmtree(warm)
    elif change == "edited":
        edit(warm / "config.yaml", accumulate=3)
    elif change == "damaged":
        (warm / "run.json").write_text("{")
    else:
        # The run of the other pretraining is gone, and that of this one names the other.
        changed = ["alloy t0 budget 1 seed 10 simclr"]
        for path in folder.glob("finetune/*/config.yaml"):
            used = Path(read_tree(path)["pretrained"])
            if used == warm:
                edit(path, pretrained=str(other))
            elif used == other:
                shutil.rmtree(path.parent)
    versions.add(novel=0)
    assert missing(archive, folder, **changes) == [*changed, "alloy t0 budget 1 seed 10 warm"]


def test_runs_of_another_version_are_not_taken(
    archive: Path, tmp_path: Path, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    run(small_study(archive, folder, methods=[NONE]), Fabricator())
    versions.add(novel=0)
    record = next(folder.glob("finetune/*/run.json"))
    (attempt,) = json.loads(record.read_text())["attempts"]
    resumed = {**attempt, "versions": {**attempt["versions"], "pscl-hpc": "0.0.9"}}
    edit(record, attempts=[resumed, attempt])
    image = record.parent.name.split("--")[1]
    assert missing(archive, folder, methods=[NONE]) == [f"alloy {image} budget 1 seed 10 none"]
    edit(record, attempts=[attempt])
    monkeypatch.setattr("pscl_hpc.study.keys.__version__", "9.9.9")
    assert len(missing(archive, folder, methods=[NONE])) == 3


def test_runs_of_another_archive_are_not_taken(archive: Path, tmp_path: Path, versions: Versions) -> None:
    folder = tmp_path / "study"
    run(small_study(archive, folder, methods=[NONE]), Fabricator())
    versions.add(novel=0)
    other = write_archive(tmp_path / "other.h5", twin="alloy/t4")
    assert len(missing(other, folder, methods=[NONE])) == 3
    edit(next(folder.glob("finetune/*/run.json")), archive="another")
    assert len(started(archive, folder, methods=[NONE])) == 1


def test_old_runs_of_other_studies_are_copied(archive: Path, tmp_path: Path, versions: Versions) -> None:
    first, folder = tmp_path / "first", tmp_path / "second"
    changes = {"datasets": ONE, "reuse": [str(first)]}
    before = run(small_study(archive, first, datasets=ONE), Fabricator())
    next(first.glob("finetune/*--scratch--*/evaluation.json")).unlink()
    versions.add(novel=0)
    study = small_study(archive, folder, **changes)
    assert set(look(study).elsewhere.values()) < {path.parent for path in first.glob("*/*/run.json")}
    old = content(first)
    assert [label.rpartition(" ")[2] for label in started(archive, folder, **changes)] == ["none"]
    assert content(first) == old
    # The copies have today's names, and are on their own.
    shutil.rmtree(first)
    jobs = look(study).plan.jobs
    assert names(folder) == {job.folder.name for job in jobs.values()}
    assert all(job.folder.name.endswith(key[:12]) for key, job in jobs.items())
    for job in jobs.values():
        assert load_config(job.folder / "config.yaml") == job.config
        if isinstance(job.config, FinetuneConfig):
            assert read_evaluation(job.folder / "evaluation.json").pretrained == job.config.pretrained
    versions.add(newer=0)
    again = Fabricator()
    rows = run(study, again).rows
    assert again.started == []
    assert [row.dice for row in rows] == [row.dice for row in before.rows]


def test_a_copy_beside_its_old_pretraining_is_found_later(
    archive: Path, tmp_path: Path, versions: Versions
) -> None:
    first, folder = tmp_path / "first", tmp_path / "second"
    changes = {"methods": [SIMCLR], "datasets": ONE}
    run(small_study(archive, first, **changes), Fabricator())
    run(small_study(archive, folder, budgets=[2], **changes), Fabricator())
    versions.add(novel=0)
    assert started(archive, folder, budgets=[1, 2], reuse=[str(first)], **changes) == []
    versions.add(newer=0)
    assert missing(archive, folder, budgets=[1, 2], **changes) == []


def test_an_unfinished_run_is_resumed_where_it_began(
    archive: Path, tmp_path: Path, versions: Versions
) -> None:
    folder = tmp_path / "study"
    moved = tmp_path / "moved.h5"
    run(
        small_study(archive, folder, datasets=ONE),
        Fabricator(failing=("none", "10 simclr", "pretraining pscl")),
    )
    folders = names(folder)
    begun = {path.parent.name for path in folder.glob("*/*/run.json") if "attempts" not in path.read_text()}
    assert len(begun) == 3
    versions.add(novel=0)
    shutil.copy(archive, moved)
    # The fine-tuning of the pretraining that failed had not begun.
    assert len(started(moved, folder, datasets=ONE)) == 4
    assert folders < names(folder)
    assert len(names(folder)) == len(folders) + 1
    for name in begun:
        (file,) = folder.glob(f"*/{name}/config.yaml")
        written = read_tree(file)
        assert "novel" not in written
        assert written["data"]["archive"] == str(moved)
    versions.add(newer=0)
    assert missing(moved, folder, datasets=ONE) == []


def test_of_two_the_finished_or_the_furthest_is_taken(
    archive: Path, tmp_path: Path, versions: Versions
) -> None:
    changes = {"methods": [NONE], "datasets": [{"name": "alloy", "references": ["alloy/t0"]}]}
    folder, other = tmp_path / "study", tmp_path / "other"
    run(small_study(archive, folder, **changes), Fabricator())
    versions.add(novel=0)
    run(small_study(archive, other, **changes), Fabricator())
    (old,) = folder.glob("finetune/*")
    (new,) = other.glob("finetune/*")
    new = new.rename(old.with_name(new.name))
    versions.add(newer=0)

    def found() -> Path:
        plan = look(small_study(archive, folder, **changes)).plan
        (job,) = plan.jobs.values()
        assert set(StoredRuns(folder, plan.jobs).find(job)) <= {old, new}
        return job.folder

    for finished, unfinished in ((old, new), (new, old)):
        scores = (unfinished / "evaluation.json").read_bytes()
        (unfinished / "evaluation.json").unlink()
        assert found() == finished
        (unfinished / "evaluation.json").write_bytes(scores)
    for path in (old, new):
        (path / "evaluation.json").unlink()
        (path / "checkpoints").mkdir(exist_ok=True)
    for step, path in ((2, old), (10, new), (11, old)):
        (path / "checkpoints" / f"step-{step:08d}.pt").write_bytes(b"")
        assert found() == path
    assert len(started(archive, folder, **changes)) == 1
    assert names(folder) == {old.name, new.name}


def test_a_run_that_has_begun_with_todays_key_is_the_one(
    archive: Path, tmp_path: Path, versions: Versions
) -> None:
    folder = tmp_path / "study"
    study = small_study(archive, folder, datasets=ONE)
    run(study, Fabricator())
    aside = folder.rename(tmp_path / "aside")
    versions.add(novel=0)
    run(study, Fabricator(failing=("none",)))
    for run_folder in aside.glob("*/*--*"):
        shutil.copytree(run_folder, folder / run_folder.parent.name / run_folder.name)
    state = look(study)
    assert len(state.missing) == 1
    assert all(job.folder.name.endswith(key[:12]) for key, job in state.plan.jobs.items())

"""The file of a study: what goes over what, what is written out, and mistakes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.errors import UserError
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.study.config import load_study, study_yaml
from pscl_hpc.study.plan import make_plan

from .material import plan_of, study_file


def test_a_study_that_is_written_out_is_the_same_study(archive: Path, tmp_path: Path) -> None:
    """Files that entries name are read in, and common keys go over those of the files, an entry's own over both."""
    (tmp_path / "base.yaml").write_text(
        "{batch_size: 5, seed: 3, schedule: {steps: 9}, method: {name: simclr}}"
    )
    methods = [
        {"name": "none", "pretrain": "none", "finetune": {"batch_size": 1}},
        {"name": "file", "pretrain": "base.yaml"},
        {"name": "keys", "pretrain": {"extends": "base.yaml", "schedule": {"steps": 7}}},
    ]
    file = study_file(
        archive,
        tmp_path / "study",
        methods=methods,
        pretrain={"schedule": {"steps": 8}, "data": {"splits": ["train"]}},
    )
    study = load_study(file, ["seeds=[4]"])
    plan = make_plan(study, str(archive))
    steps = {
        name: {
            plan.jobs[cell.pretraining].config.schedule.steps for cell in plan.cells if cell.method == name
        }
        for name in ("file", "keys")
    }
    assert steps == {"file": {8}, "keys": {7}}
    pretrainings = [job.config for job in plan.jobs.values() if isinstance(job.config, PretrainConfig)]
    assert {(config.batch_size, config.seed) for config in pretrainings} == {(5, 4)}
    written = tmp_path / "elsewhere" / "study.yaml"
    written.parent.mkdir()
    written.write_text(study_yaml(study), encoding="utf-8")
    again = make_plan(load_study(written), str(archive))
    assert again.jobs == plan.jobs
    assert again.cells == plan.cells


def test_a_study_with_a_classifier_can_be_read_again(archive: Path, tmp_path: Path) -> None:
    methods = [{"name": "filters", "classifier": {"head": {"name": "linear"}}}]
    study = load_study(study_file(archive, tmp_path / "study", methods=methods))
    written = tmp_path / "written.yaml"
    written.write_text(study_yaml(study), encoding="utf-8")
    assert load_study(written) == study


def test_the_file_of_an_entry_goes_under_the_keys_of_all_runs(archive: Path, tmp_path: Path) -> None:
    """For both stages: the entry's file, the study's keys, the entry's own."""
    (tmp_path / "base.yaml").write_text("{batch_size: 7, schedule: {steps: 90, decay: cosine}}")
    own = {"extends": "base.yaml", "validate_every": 3}
    methods = [
        {"name": "file", "pretrain": {"extends": "base.yaml", "method": {"name": "simclr"}}, "finetune": own},
        {"name": "plain", "pretrain": "none"},
    ]
    file = study_file(archive, tmp_path / "study", methods=methods)
    study = load_study(file)
    written = tmp_path / "written.yaml"
    written.write_text(study_yaml(study), encoding="utf-8")
    for plan in (make_plan(study, str(archive)), make_plan(load_study(written), str(archive))):
        for cell in plan.cells:
            config = plan.jobs[cell.key].config
            assert isinstance(config, FinetuneConfig)
            assert (config.batch_size, config.schedule.steps) == (2, 4)
            assert config.schedule.decay == ("cosine" if cell.method == "file" else "constant")
            assert config.validate_every == (3 if cell.method == "file" else 50)
            if cell.pretraining:
                trunk = plan.jobs[cell.pretraining].config
                assert isinstance(trunk, PretrainConfig)
                assert (trunk.batch_size, trunk.schedule.steps, trunk.schedule.decay) == (3, 4, "cosine")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"methods": []}, "methods"),
    ({"methods": [{"name": "a", "pretrain": "none"}] * 2}, "methods .*'a'"),
    ({"methods": [{"name": "a", "pretrain": {"method": {"name": "simclrr"}}}]}, "simclrr"),
    ({"methods": [{"name": "a", "pretrain": {"schedule": {"stepz": 3}}}]}, "stepz"),
    ({"methods": [{"name": "a", "pretrain": "none", "finetune": {"cropp": 3}}]}, "cropp"),
    ({"methods": [{"name": "a", "pretrain": "nowhere.yaml"}]}, "nowhere.yaml"),
    ({"methods": [{"name": "a/b", "pretrain": "none"}]}, "methods"),
    ({"methods": [{"name": "a"}]}, "pretrain"),
    ({"datasets": [{"name": "alloi"}]}, "alloi"),
    ({"datasets": [{"name": "bare"}]}, "bare"),
    ({"datasets": [{"name": "bare", "references": {"count": 9}}]}, "bare has 4 .*9"),
    ({"datasets": [{"name": "alloy", "references": ["alloy/x0"]}]}, "alloy/x0"),
    ({"datasets": [{"name": "alloy", "references": ["bare/0"]}]}, "bare/0"),
    ({"datasets": [{"name": "other", "references": ["other/0"]}]}, "other/0"),
    ({"datasets": [{"name": "alloy", "template": "bare/0"}]}, "template bare/0"),
    ({"datasets": [{"name": "alloy", "template": "alloy/v0"}]}, "template alloy/v0 .*'val'"),
    ({"datasets": [{"name": "alloy", "template": "alloy/t9"}]}, "alloy/t9"),
    ({"budgets": [6]}, "budgets: alloy has 5 .*6"),
    ({"budgets": ["some"]}, "budgets.0': 'some' .*square-N"),
    ({"budgets": [1, "square-0"]}, "budgets.1': 'square-0'"),
    ({"budgets": [0]}, "budgets.0': 0 "),
    ({"datasets": [{"name": "alloy", "budgets": ["al"]}]}, "datasets.0.budgets.0': 'al'"),
    ({"budgets": []}, "budgets"),
    ({"show": ["alloy/nosuch"]}, "show: .*'alloy/nosuch'"),
    ({"show": ["alloy/x0", "alloy/v0"]}, "show: .* 'alloy/v0'; did you mean 'alloy/x0'"),
    ({"headline": ["alloy"]}, "headline"),
    ({"headline": ["alloy/val"]}, "alloy/val"),
    ({"headline": ["alloy/test", "alloy/test"]}, "headline .*'alloy/test'"),
    ({"seeds": [-1]}, "seeds"),
    ({"archive": ""}, "archive"),
    ({"synthetic": {"images": 3}}, "archive"),
    ({"unknown": 1}, "unknown"),
    ({"run": "~/study"}, "run .*'~'"),
    (
        {"datasets": [{"name": "alloy", "references": {"count": 0}}]},
        "datasets.0.references.count",
    ),
    ({"finetune": {"validation_split": "test"}}, "validation_split"),
]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("pretrain.data=foo", "pretraining: key 'data' .*'foo'"),
        ("pretrain.data=null", "pretraining: key 'data' .*None"),
        ("pretrain.data=[a]", "pretraining: key 'data'"),
        ("finetune.data=null", "fine-tuning: key 'data' .*None"),
        ("pretrain.method=simclr", "key 'method' .*'simclr'.* for example method.name=simclr"),
        ("pretrain.method={name: pscl-simclr, reference: foo}", "key 'method.reference' .*'foo'"),
        ("finetune.optimiser=adam", "key 'optimiser'"),
        ("pretrain.method.name=[a]", "method"),
    ],
)
def test_a_value_in_place_of_a_section_is_named(
    archive: Path, tmp_path: Path, override: str, key: str
) -> None:
    methods = [{"name": "trunk", "pretrain": {}}, {"name": "none", "pretrain": "none"}]
    file = study_file(archive, tmp_path / "study", methods=methods)
    with pytest.raises(UserError, match=key):
        make_plan(load_study(file, [override]), str(archive))


@pytest.mark.parametrize(("changes", "said"), MISTAKES)
def test_mistakes_are_one_sentence_that_names_them(
    archive: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        plan_of(archive, tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_another_kind_is_no_study(tmp_path: Path) -> None:
    file = tmp_path / "pretrain.yaml"
    file.write_text("{kind: pretrain, data: {archive: a.h5}}")
    with pytest.raises(UserError, match=r"pretrain\.yaml: .*pretrain configuration"):
        load_study(file)

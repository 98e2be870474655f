"""Which runs a study consists of, and when two of them are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pscl_hpc.archive import IGNORE_INDEX, Archive, Collection, ShardWriter
from pscl_hpc.config import FinetuneConfig, PretrainConfig, load_study, resolve_config
from pscl_hpc.config.study import study_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.pretraining import PretrainData
from pscl_hpc.study.keys import run_key
from pscl_hpc.study.plan import Plan, make_plan
from pscl_hpc.study.pool import check_pool
from tests.helpers import CLASSES, micrograph

from .material import SIZE, small_study, study_file, study_tree, write_archive


def plan_of(archive: Path, folder: Path, /, **changes: Any) -> Plan:
    return make_plan(small_study(archive, folder / "study", **changes), str(archive))


def kinds(plan: Plan) -> dict[str, int]:
    return {
        kind: sum(job.config.kind == kind for job in plan.jobs.values()) for kind in ("pretrain", "finetune")
    }


def trunks(plan: Plan, method: str) -> dict[tuple[str, ...], str]:
    """Key of the pretraining by references."""
    return {cell.annotation.references: cell.pretraining for cell in plan.cells if cell.method == method}


def test_what_needs_no_annotation_is_pretrained_once_and_shared(archive: Path, tmp_path: Path) -> None:
    plan = plan_of(archive, tmp_path)
    assert kinds(plan) == {"pretrain": 1 + 3, "finetune": 3 * 3}
    assert len(plan.cells) == 9
    assert set(trunks(plan, "none").values()) == {""}
    assert len(set(trunks(plan, "simclr").values())) == 1
    for references, key in trunks(plan, "pscl").items():
        config = plan.jobs[key].config
        assert isinstance(config, PretrainConfig)
        assert config.method.reference.ids == references  # type: ignore[union-attr]
    for cell in plan.cells:
        job = plan.jobs[cell.key]
        assert isinstance(job.config, FinetuneConfig)
        assert job.config.references == cell.annotation.references
        assert job.needs == cell.pretraining
        trunk = plan.jobs[cell.pretraining].folder if cell.pretraining else ""
        assert job.config.pretrained == str(trunk)
    folders = [job.folder for job in plan.jobs.values()]
    assert len(set(folders)) == len(folders)
    assert list(plan.jobs) == sorted(plan.jobs, key=lambda key: plan.jobs[key].config.kind != "pretrain")


@pytest.mark.parametrize(("per", "count"), [("reference", 4), ("dataset", 2), ("study", 1)])
def test_how_often_annotation_is_pretrained_with(archive: Path, tmp_path: Path, per: str, count: int) -> None:
    plan = plan_of(
        archive,
        tmp_path,
        pretrain_per=per,
        datasets=[{"name": "alloy", "template": "alloy/t1"}, {"name": "bare", "references": ["bare/2"]}],
        methods=[{"name": "pscl", "pretrain": {"method": {"name": "pscl-simclr"}}}],
    )
    assert kinds(plan)["pretrain"] == count
    if per == "study":
        config = next(job.config for job in plan.jobs.values() if job.config.kind == "pretrain")
        assert config.method.reference.ids == ("alloy/t1",)  # type: ignore[union-attr]


def test_entries_that_differ_in_fine_tuning_alone_share_their_trunk(archive: Path, tmp_path: Path) -> None:
    simclr = {"method": {"name": "simclr"}}
    plan = plan_of(
        archive,
        tmp_path,
        methods=[
            {"name": "simclr", "pretrain": simclr},
            {"name": "frozen", "pretrain": simclr, "finetune": {"encoder_lr_scale": 0.0}},
            {"name": "again", "pretrain": simclr},
        ],
        seeds=[1, 2],
    )
    # Two seeds; "again" is "simclr".
    assert kinds(plan) == {"pretrain": 2, "finetune": 2 * 2 * 3}
    assert len(plan.cells) == 18
    for cell in plan.cells:
        assert plan.jobs[cell.key].config.seed == cell.seed
        assert plan.jobs[cell.pretraining].config.seed == cell.seed


def test_budgets_are_nested_and_repetitions_of_the_same_images_are_one(archive: Path, tmp_path: Path) -> None:
    plan = plan_of(
        archive,
        tmp_path,
        budgets=["square-16", 1, 2, 4, "all"],
        methods=[
            {"name": "none", "pretrain": "none"},
            {"name": "pscl", "pretrain": {"method": {"name": "pscl-simclr"}}},
        ],
    )
    found: dict[Any, list[tuple[str, ...]]] = {}
    for cell in plan.cells:
        if cell.method == "none":
            found.setdefault(cell.annotation.budget, []).append(cell.annotation.references)
    assert found["square-16"] == found[1] == [("alloy/t0",), ("alloy/t1",), ("alloy/t2",)]
    assert found[2] == [("alloy/t0", "alloy/t1"), ("alloy/t1", "alloy/t2"), ("alloy/t0", "alloy/t2")]
    # The three recommended ones and one drawn, the same or another, for each repetition.
    assert all({"alloy/t0", "alloy/t1", "alloy/t2"} < set(names) and len(names) == 4 for names in found[4])
    assert found["all"] == [tuple(f"alloy/t{i}" for i in range(5))]
    for cell in plan.cells:
        side = 16 if cell.annotation.budget == "square-16" else 0
        config = plan.jobs[cell.key].config
        assert isinstance(config, FinetuneConfig)
        assert config.square == side
        if cell.pretraining:
            reference = plan.jobs[cell.pretraining].config.method.reference  # type: ignore[union-attr]
            assert reference.square == side
            assert reference.ids == cell.annotation.references


def test_references_are_drawn_where_none_are_recommended(archive: Path, tmp_path: Path) -> None:
    def draw(seed: int, folder: str) -> dict[Any, list[tuple[str, ...]]]:
        entry = {"name": "bare", "references": {"count": 2, "seed": seed}, "budgets": [1, 2]}
        plan = plan_of(
            archive, tmp_path / folder, datasets=[entry], methods=[{"name": "none", "pretrain": "none"}]
        )
        found: dict[Any, list[tuple[str, ...]]] = {}
        for cell in plan.cells:
            found.setdefault(cell.annotation.budget, []).append(cell.annotation.references)
        return found

    first = draw(0, "a")
    assert first == draw(0, "b")
    assert len({str(draw(seed, f"c{seed}")) for seed in range(6)}) > 1
    with Archive(archive) as opened:
        splits = {record.id: record.split for record in opened.records}
    assert all(splits[name] == "train" for names in first[1] + first[2] for name in names)
    for single, pair in zip(first[1], first[2], strict=True):
        assert set(single) < set(pair)
        # Each image shows one of the two foreground classes: the second image brings the other one.
        assert {int(name[-1]) % 2 for name in pair} == {0, 1}


def test_drawn_references_are_followed_by_images_of_an_order_of_their_own(
    archive: Path, tmp_path: Path
) -> None:
    entry = {"name": "bare", "references": {"count": 3, "seed": 4}, "budgets": [1, 2, 3]}
    plan = plan_of(archive, tmp_path, datasets=[entry], methods=[{"name": "none", "pretrain": "none"}])
    found: dict[Any, list[tuple[str, ...]]] = {}
    for cell in plan.cells:
        found.setdefault(cell.annotation.budget, []).append(cell.annotation.references)
    for fewer, more in ((1, 2), (2, 3)):
        assert all(any(set(few) < set(many) for many in found[more]) for few in found[fewer])
    in_turn = {tuple(sorted({*found[1][i], *found[1][(i + 1) % 3]})) for i in range(3)}
    assert set(found[2]) != in_turn


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotated images of which the second and third have nothing in their masks that is learnt."""
    path = tmp_path_factory.mktemp("blank") / "blank.h5"
    with ShardWriter(path, [Collection("alloy", CLASSES, 0, (2,), ("alloy/t0",))]) as writer:
        for seed, stem in enumerate(("t0", "t1", "t2", "t3", "v0", "x0")):
            image, mask = micrograph(seed, SIZE)
            mask = np.full_like(mask, {"t1": IGNORE_INDEX, "t2": 2}[stem]) if stem in ("t1", "t2") else mask
            split = {"t": "train", "v": "val", "x": "test"}[stem[0]]
            writer.add(image, id=f"alloy/{stem}", dataset="alloy", mask=mask, split=split)
    return path


@pytest.mark.parametrize(
    ("references", "budget"), [(None, "all"), (None, 2), ({"count": 2}, 1), ({"count": 2}, "square-8")]
)
def test_what_a_study_chooses_itself_can_be_learnt_from(
    blank: Path, tmp_path: Path, references: Any, budget: Any
) -> None:
    datasets = [{"name": "alloy", "references": references}]
    plan = plan_of(
        blank, tmp_path, datasets=datasets, budgets=[budget], methods=[{"name": "none", "pretrain": "none"}]
    )
    assert {name for cell in plan.cells for name in cell.annotation.references} == {"alloy/t0", "alloy/t3"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budgets": [3]}, "2 annotated training images, not 3"),
        (
            {"datasets": [{"name": "alloy", "references": {"count": 3}}]},
            "2 .* so 3 references cannot be drawn",
        ),
        ({"datasets": [{"name": "alloy", "references": ["alloy/t1"]}]}, "no pixel of alloy/t1 is annotated"),
    ],
)
def test_images_without_anything_to_learn_do_not_count_and_are_refused_by_name(
    blank: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        plan_of(blank, tmp_path, methods=[{"name": "none", "pretrain": "none"}], **changes)


keys = st.sampled_from(
    [
        ("seed", 11),
        ("batch_size", 6),
        ("schedule", {"steps": 5}),
        ("views", {"size": [32, 48]}),
        ("method", {"name": "simclr", "temperature": 0.4}),
        ("runtime", {"precision": "bf16"}),
        ("data", {"archive": "a.h5", "splits": ["train"]}),
        ("checkpoint", {"keep_best": False}),
    ]
)
same = st.sampled_from(
    [
        ("run", "elsewhere"),
        ("name", "other"),
        ("log", {"every_steps": 3}),
        ("runtime", {"threads": 2, "workers": 3, "device": "cpu"}),
        ("data", {"archive": "moved.h5"}),
    ]
)


@given(st.lists(keys, max_size=4), st.lists(same, max_size=3), st.sampled_from(["", "1" * 64, "2" * 64]))
@settings(deadline=None)
def test_the_key_is_that_of_the_content(
    changes: list[tuple[str, Any]], elsewhere: list[tuple[str, Any]], fingerprint: str
) -> None:
    base: dict[str, Any] = {"data": {"archive": "a.h5"}, "method": {"name": "simclr"}}
    changed = {**base, **dict(changes)}
    moved = dict(changed)
    for key, value in elsewhere:
        moved[key] = {**moved.get(key, {}), **value} if isinstance(value, dict) else value
    first, second, third = (resolve_config(tree, source="test") for tree in (base, changed, moved))
    assert run_key(second, fingerprint) == run_key(third, fingerprint)
    assert (run_key(first, fingerprint) == run_key(second, fingerprint)) == (first == second)
    assert run_key(first, fingerprint) != run_key(first, "3" * 64)


def test_the_key_of_a_fine_tuning_is_that_of_its_trunk_and_not_of_its_place() -> None:
    tree = {"kind": "finetune", "data": {"archive": "a.h5"}, "references": ["alloy/t0"]}
    here, there = (
        resolve_config({**tree, "pretrained": path}, source="test") for path in ("runs/a", "runs/b")
    )
    assert run_key(here, "f", "trunk") == run_key(there, "f", "trunk")
    assert run_key(here, "f", "trunk") != run_key(here, "f", "another")


def test_the_key_changes_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"data": {"archive": "a.h5"}, "method": {"name": "simclr"}}
    config = resolve_config(tree, source="test")
    before = run_key(config, "f")
    monkeypatch.setattr("pscl_hpc.study.keys.__version__", "0.0.0")
    assert run_key(config, "f") != before


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


def test_the_pool_is_stated(archive: Path, tmp_path: Path) -> None:
    pools = plan_of(archive, tmp_path).pools
    assert pools["simclr"].counts == (("alloy", "train", 5), ("other", "", 2))
    assert pools["simclr"].images == 7
    assert not pools["simclr"].without_own
    assert "none" not in pools


@pytest.mark.parametrize("datasets", [["alloy", "other"], ["other"]])
@pytest.mark.parametrize("in_pool", [True, False])
def test_the_pool_tells_where_annotated_images_are_left_out(
    archive: Path, tmp_path: Path, datasets: list[str], in_pool: bool
) -> None:
    method = {"name": "pscl-simclr", "reference": {"in_pool": in_pool}}
    tree = study_tree(archive, tmp_path / "study", methods=[{"name": "pscl", "pretrain": {"method": method}}])
    tree["pretrain"]["data"] = {"datasets": datasets, "splits": ["train", ""]}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tree))
    plan = make_plan(load_study(file), str(archive))
    pool = plan.pools["pscl"]
    with Archive(archive) as opened:
        read = [
            len(PretrainData(opened, job.config).records)
            for job in plan.jobs.values()
            if isinstance(job.config, PretrainConfig)
        ]
    assert read == [pool.images - pool.without_own] * 3
    assert ("less the annotated images" in pool.sentence()) == pool.without_own


@pytest.mark.parametrize("split", ["test", "test_ood", "val"])
@pytest.mark.parametrize("where", ["pretrain", "finetune", "entry"])
def test_images_that_score_or_choose_are_refused_in_the_pool(
    archive: Path, tmp_path: Path, split: str, where: str
) -> None:
    tree = study_tree(archive, tmp_path / "study")
    if where == "entry":
        tree["methods"][1]["pretrain"]["data"] = {"splits": ["train", split]}
    else:
        tree[where]["data"] = {"splits": ["train", split]}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=f"data.splits has '{split}'"):
        make_plan(load_study(file), str(archive))


@pytest.mark.parametrize("where", ["finetune", "entry"])
def test_a_validation_split_of_any_name_is_refused_in_the_pool(
    archive: Path, tmp_path: Path, where: str
) -> None:
    tree = study_tree(archive, tmp_path / "study")
    tree["pretrain"]["data"] = {"splits": ["train", "chosen"]}
    tree["methods"].reverse()
    if where == "entry":
        tree["methods"][-1]["finetune"] = {"validation_split": "chosen"}
    else:
        tree["finetune"]["validation_split"] = "chosen"
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="splits has 'chosen'"):
        make_plan(load_study(file), str(archive))


def test_the_pixels_of_a_test_image_are_refused_under_any_name(tmp_path: Path) -> None:
    twin = write_archive(tmp_path / "twin.h5", twin="other/1")
    with pytest.raises(UserError, match="other/1 of the pool has the same pixels as alloy/x0"):
        plan_of(twin, tmp_path)
    without = study_tree(twin, tmp_path / "study")
    without["pretrain"]["data"] = {"splits": ["train"]}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(without))
    make_plan(load_study(file), str(twin))


@pytest.mark.parametrize("image", ["alloy/t4", "alloy/t3"])
def test_annotated_images_of_a_pretraining_are_learnt_from_too(tmp_path: Path, image: str) -> None:
    """Whether they are in its pool or not."""
    twin = write_archive(tmp_path / "twin.h5", twin="alloy/t4")
    tree = study_tree(
        twin, tmp_path / "study", pretrain_per="dataset", datasets=[{"name": "alloy", "template": image}]
    )
    tree["pretrain"]["data"] = {"datasets": ["other"]}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tree))
    if image == "alloy/t3":
        make_plan(load_study(file), str(twin))
        return
    with pytest.raises(UserError, match="alloy/t4 of the annotated images has the same pixels as alloy/x0"):
        make_plan(load_study(file), str(twin))


def test_annotated_images_of_splits_that_score_or_choose_are_refused(archive: Path) -> None:
    tree = {
        "data": {"archive": str(archive), "datasets": ["other"], "splits": [""]},
        "method": {"name": "pscl-simclr", "reference": {"ids": ["alloy/t0"]}},
    }
    config = resolve_config(tree, source="test")
    with Archive(archive) as opened:
        check_pool(opened, config, validation={"val", ""}, source="test")
        with pytest.raises(UserError, match="test: alloy/t0 is of the split 'train'"):
            check_pool(opened, config, validation={"train"}, source="test")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"methods": []}, "methods is empty"),
    ({"methods": [{"name": "a", "pretrain": "none"}] * 2}, "methods has 'a' twice"),
    ({"methods": [{"name": "a", "pretrain": {"method": {"name": "simclrr"}}}]}, "simclrr"),
    ({"methods": [{"name": "a", "pretrain": {"schedule": {"stepz": 3}}}]}, "stepz"),
    ({"methods": [{"name": "a", "pretrain": "none", "finetune": {"cropp": 3}}]}, "cropp"),
    ({"methods": [{"name": "a", "pretrain": "nowhere.yaml"}]}, "nowhere.yaml"),
    ({"methods": [{"name": "a/b", "pretrain": "none"}]}, "methods"),
    ({"methods": [{"name": "a"}]}, "pretrain"),
    ({"datasets": [{"name": "alloi"}]}, "alloi"),
    ({"datasets": [{"name": "bare"}]}, "bare recommends no references"),
    ({"datasets": [{"name": "bare", "references": {"count": 9}}]}, "cannot be drawn"),
    ({"datasets": [{"name": "alloy", "references": ["alloy/x0"]}]}, "alloy/x0"),
    ({"datasets": [{"name": "alloy", "references": ["bare/0"]}]}, "bare/0"),
    ({"datasets": [{"name": "other", "references": ["other/0"]}]}, "other/0"),
    ({"datasets": [{"name": "alloy", "template": "bare/0"}]}, "template bare/0 of alloy is of bare"),
    ({"datasets": [{"name": "alloy", "template": "alloy/v0"}]}, "template alloy/v0 of alloy is in the split"),
    ({"datasets": [{"name": "alloy", "template": "alloy/t9"}]}, "alloy/t9"),
    ({"budgets": [6]}, "5 annotated training images, not 6"),
    ({"budgets": ["some"]}, "key 'budgets.0': 'some' is no budget; .* square-N"),
    ({"budgets": [1, "square-0"]}, "key 'budgets.1': 'square-0' is no budget"),
    ({"budgets": [0]}, "key 'budgets.0': 0 is no budget"),
    ({"datasets": [{"name": "alloy", "budgets": ["al"]}]}, "key 'datasets.0.budgets.0': 'al' is no budget"),
    ({"budgets": []}, "budgets is empty"),
    ({"show": ["alloy/nosuch"]}, "show: .* has no annotated test image 'alloy/nosuch'"),
    ({"show": ["alloy/x0", "alloy/v0"]}, "show: .* 'alloy/v0'; did you mean 'alloy/x0'"),
    ({"headline": ["alloy"]}, "headline"),
    ({"headline": ["alloy/val"]}, "alloy/val"),
    ({"headline": ["alloy/test", "alloy/test"]}, "headline has 'alloy/test' twice"),
    ({"seeds": [-1]}, "seeds"),
    ({"archive": ""}, "archive"),
    ({"synthetic": {"images": 3}}, "one archive"),
    ({"unknown": 1}, "unknown"),
    ({"finetune": {"validation_split": "test"}}, "validation_split"),
]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("pretrain.data=foo", "pretraining: key 'data' holds 'foo'"),
        ("pretrain.data=null", "pretraining: key 'data' holds None"),
        ("pretrain.data=[a]", "pretraining: key 'data' holds"),
        ("finetune.data=null", "fine-tuning: key 'data' holds None"),
        ("pretrain.method=simclr", "key 'method' holds 'simclr', .* for example method.name=simclr"),
        ("pretrain.method={name: pscl-simclr, reference: foo}", "key 'method.reference' holds 'foo'"),
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
    with pytest.raises(UserError, match="pretrain configuration, not a study"):
        load_study(file)

"""Which runs a study consists of, and which images they are annotated with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pscl_hpc.archive import IGNORE_INDEX, Archive, Collection, ShardWriter
from pscl_hpc.errors import UserError
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.study.plan import Plan
from tests.helpers import CLASSES, micrograph

from .material import SIZE, plan_of


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


def test_a_trunk_from_elsewhere_is_not_left_out_in_silence(archive: Path, tmp_path: Path) -> None:
    methods = [{"name": "none", "pretrain": "none", "finetune": {"pretrained": "runs/trunk"}}]
    with pytest.raises(UserError, match="runs/trunk"):
        plan_of(archive, tmp_path, methods=methods)


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
        ({"budgets": [3]}, "budgets: alloy has 2 .*3"),
        (
            {"datasets": [{"name": "alloy", "references": {"count": 3}}]},
            "alloy has 2 .*3",
        ),
        ({"datasets": [{"name": "alloy", "references": ["alloy/t1"]}]}, "alloy/t1 has no pixel"),
    ],
)
def test_images_without_anything_to_learn_do_not_count_and_are_refused_by_name(
    blank: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        plan_of(blank, tmp_path, methods=[{"name": "none", "pretrain": "none"}], **changes)

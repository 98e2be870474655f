"""What a study pretrains on: the pool is stated, and no image that scores or chooses is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pscl_hpc.archive import Archive
from pscl_hpc.config import resolve_config
from pscl_hpc.errors import UserError
from pscl_hpc.pretraining import PretrainData
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.study.config import load_study
from pscl_hpc.study.plan import make_plan
from pscl_hpc.study.pool import check_pool

from .material import plan_of, study_tree, write_archive


def test_the_pool_is_stated(archive: Path, tmp_path: Path) -> None:
    pools = plan_of(archive, tmp_path).pools
    assert [(part.dataset, part.split, part.images) for part in pools["simclr"].parts] == [
        ("alloy", "train", 5),
        ("other", "", 2),
    ]
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
    assert read == [sum(part.images for part in pool.parts) - pool.without_own] * 3
    assert pool.without_own == (not in_pool and "alloy" in datasets)


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
    with pytest.raises(UserError, match=rf"data\.splits has '{split}'"):
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
    with pytest.raises(UserError, match=r"other/1.*alloy/x0"):
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
    with pytest.raises(UserError, match=r"alloy/t4.*alloy/x0"):
        make_plan(load_study(file), str(twin))


def test_annotated_images_of_splits_that_score_or_choose_are_refused(archive: Path) -> None:
    tree = {
        "data": {"archive": str(archive), "datasets": ["other"], "splits": [""]},
        "method": {"name": "pscl-simclr", "reference": {"ids": ["alloy/t0"]}},
    }
    config = resolve_config(tree, source="test")
    with Archive(archive) as opened:
        check_pool(opened, config, validation={"val", ""}, source="test")
        with pytest.raises(UserError, match=r"alloy/t0.*'train'"):
            check_pool(opened, config, validation={"train"}, source="test")

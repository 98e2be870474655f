"""Input that a pretraining refuses before it writes anything, and input that it warns of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.errors import UserError
from pscl_hpc.pretraining import PretrainData, pretrain
from pscl_hpc.pretraining.task import config_warnings
from tests.helpers import CLASSES, micrograph, small_config


def _references(*ids: str) -> dict[str, object]:
    return {"name": "pscl-simclr", "reference": {"ids": list(ids)}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": _references("alloy/9")}, "alloy/9"),
        ({"method": _references("other/0")}, "other/0"),
        ({"method": _references("alloy/5")}, "alloy/5"),
        ({"data": {"archive": "ARCHIVE", "splits": ["trian"]}}, "trian"),
        ({"data": {"archive": "ARCHIVE", "datasets": ["aloy"]}}, "'alloy'"),
        ({"data": {"archive": "nowhere.h5"}}, "nowhere.h5"),
        ({"runtime": {"device": "cuda"}}, "runtime.device"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    archive: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    text = json.loads(json.dumps(changes).replace("ARCHIVE", str(archive)))
    if torch.cuda.is_available() and "runtime" in changes:
        return
    with pytest.raises(UserError) as caught:
        pretrain(small_config(archive, tmp_path / "run", **text))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_reference_of_an_excluded_specimen_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "specimens.h5"
    with ShardWriter(path, [Collection("alloy", CLASSES, 0)]) as writer:
        for index in range(4):
            image, mask = micrograph(index, (40, 40))
            name = f"alloy/{index}"
            writer.add(image, id=name, dataset="alloy", mask=mask, split="train", specimen=f"s{index}")
    with Archive(path) as opened:
        for specimen, refused in (("s0", True), ("s1", False)):
            data = {"archive": str(path), "exclude_specimens": [specimen]}
            config = small_config(path, tmp_path / "run", data=data, batch_size=2)
            if refused:
                with pytest.raises(UserError, match=r"alloy/0 .* s0, .*data\.exclude_specimens"):
                    PretrainData(opened, config)
            else:
                assert [record.id for record in PretrainData(opened, config).records] == [
                    "alloy/2",
                    "alloy/3",
                ]


def test_fewer_images_than_a_batch_give_a_warning(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Archive(archive) as opened:
        images = len(opened.select(splits=["train", ""]))
    config = {"method": {"name": "simclr"}, "data": {"archive": str(archive)}, "schedule": {"steps": 1}}
    pretrain(small_config(archive, tmp_path / "few", batch_size=images + 1, **config))
    assert f"set batch_size={images}" in capsys.readouterr().err
    pretrain(small_config(archive, tmp_path / "enough", batch_size=images, **config))
    assert capsys.readouterr().err == ""


def test_training_on_scored_images_gives_a_warning(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"method": {"name": "simclr"}, "schedule": {"steps": 1}}
    data = {"archive": str(archive), "splits": ["train", "", "val"]}
    pretrain(small_config(archive, tmp_path / "all", data=data, **config))
    said = capsys.readouterr().err
    assert said.startswith("warning: data.splits ")
    assert " val" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": {"size": [34, 34]}}, "views.size=[32, 32]"),
        ({"views": {"size": [32, 48]}}, "views.size=[32, 32]"),
        ({"views": {"size": [36, 36]}}, ""),
        (
            {"views": {"size": [36, 36]}, "method": {"name": "ideal"}},
            "views.size=[32, 32]",
        ),
        ({"views": {"size": [34, 34]}, "method": {"name": "ideal", "correspondence": "feature"}}, ""),
        ({"views": {"size": [34, 48]}, "method": {"name": "simclr"}}, ""),
        ({"schedule": {"steps": 3, "warmup_steps": 3}}, "schedule.warmup_steps (3)"),
        ({"schedule": {"steps": 3, "warmup_steps": 2}}, ""),
    ],
)
def test_settings_that_are_rarely_intended_give_a_warning(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    found = config_warnings(small_config(tmp_path / "a.h5", tmp_path / "run", **changes), ["train"] * 5)
    assert len(found) == bool(said)
    assert all(said in sentence for sentence in found)

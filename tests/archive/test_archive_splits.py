"""Reading splits.json, and mistakes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError

from .archives import picture, table, write_splits


def test_a_split_whose_path_is_wrong_is_named(tmp_path: Path) -> None:
    """Its images would have no split and be used for training."""
    folder = tmp_path / "steel"
    for name in ("x/a.png", "x/b.png", "y/a.png"):
        picture(folder / "img" / name)
    write_splits(folder, train=["x/a.png"], val=["w/x/b.png"], test_ood=["z/a.png"], references=[])
    found = plan([folder])
    assert {Path(item.path).relative_to(folder / "img").as_posix() for item in found.skipped} == {
        "w/x/b.png",
        "z/a.png",
    }
    write_splits(folder, train=["x/a.png"], val=["b.png"], test_ood=["y/a.png"], references=[])
    found = plan([folder])
    assert found.skipped == ()
    assert table(found) == {
        "steel/x__a": ("train", False),
        "steel/x__b": ("val", False),
        "steel/y__a": ("test_ood", False),
    }


@pytest.mark.parametrize(
    "form", ["{}", "{}.tif", "img/{}.tif", "img\\{}.tif", "./img/{}.tif", "{}.TIF", "IMG/{}", "A/{}.tif"]
)
def test_names_in_other_forms_are_found(tmp_path: Path, form: str) -> None:
    """Without suffix, with the image folder, from Windows, in upper case; a twin is chosen only by its suffix."""
    folder = tmp_path / "steel"
    for name in "abc":
        picture(folder / "img" / f"{name}.tif")
    picture(folder / "img" / "c.png")
    names = {split: [form.format(name)] for split, name in zip(("train", "val", "test"), "abc", strict=True)}
    write_splits(folder, **names, test_ood=[], references=names["train"])
    found = plan([folder])
    if form.startswith(("A/", "IMG/")):
        assert len(found.skipped) >= 3
        return
    assert table(found) == {
        "steel/a": ("train", False),
        "steel/b": ("val", False),
        "steel/c": ("test", False),
    }
    assert found.collections["steel"].references == ("steel/a",)
    assert [item.path.name for item in found.items if item.stem == "c"] == [
        "c.tif" if "tif" in form.lower() else "c.png"
    ]


def test_a_name_without_folder_means_all_images_of_that_name(tmp_path: Path) -> None:
    """One of them would otherwise be used for training although it is a test image."""
    for name in ("a.png", "copy/a.png", "b/a.png"):
        picture(tmp_path / "steel" / "img" / name)
    write_splits(
        tmp_path / "steel", train=["b/a.png"], val=[], test=["a.png"], test_ood=[], references=["b/a.png"]
    )
    found = plan([tmp_path / "steel"])
    splits = {item.stem: item.split for item in found.items}
    assert splits == {"a": "test", "copy__a": "test", "b__a": "train"}


def test_an_image_in_two_splits_under_two_names_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "steel" / "img" / "a.png")
    write_splits(tmp_path / "steel", train=["a.png"], val=["img/a.png"], test_ood=[], references=[])
    with pytest.raises(UserError, match=r"a\.png in train.*in val"):
        plan([tmp_path / "steel"])


@pytest.mark.parametrize("listed", ["x/heat1.5.png", "x/heat1.5", "heat1.5.png", "heat1.5"])
def test_references_are_found_like_the_images_of_a_split(tmp_path: Path, listed: str) -> None:
    folder = tmp_path / "steel"
    for name in ("x/heat1.5.png", "x/heat1.png"):
        picture(folder / "img" / name)
    write_splits(folder, train=[], val=[], test_ood=[], references=[listed])
    found = plan([folder])
    assert found.collections["steel"].references == ("steel/x__heat1.5",)
    assert found.skipped == ()


def test_references_that_are_no_image_or_several_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    for name in ("x/a.png", "y/a.png"):
        picture(folder / "img" / name)
    write_splits(folder, train=[], val=[], test_ood=[], references=["gone.png", "a.png"])
    reasons = {Path(item.path).name: item.reason for item in plan([folder]).skipped}
    assert "splits.json" in reasons["gone.png"]
    assert "2 images" in reasons["a.png"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"references": ["c"]}, r"splits\.json.* c .*test_ood"),
        ({"background": True}, "background.*True"),
        ({"ignore_classes": [True]}, "ignore_classes"),
        ({"classes": ["m", "carbide", "carbide"]}, "classes.*'carbide'"),
        ({"classes": ["m", " ", "carbide"]}, "classes.*empty"),
        ({"val": ["a.png"]}, r"a\.png.*train.*val"),
        ({"references": ["c.png"]}, r"c\.png.*test_ood"),
        ({"train": "a.png"}, "train"),
        ({"ignore_classes": ["pore"]}, "ignore_classes"),
        ({"ignore_classes": [9]}, "class 9"),
        ({"background": "matrix"}, "background.*'matrix'"),
        ({"background": 5}, "background 5"),
        ({"classes": []}, "steel.*--classes"),
    ],
)
def test_splits_that_contradict_themselves(steel: Path, changed: dict[str, Any], message: str) -> None:
    write_splits(steel, **changed)
    if changed.get("classes") == []:
        write_splits(steel, classes=[], ignore_classes=[], background=0)
    with pytest.raises(UserError, match=message):
        plan([steel])


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("tset", "test"),
        ("Test", "test"),
        ("training", "train"),
        ("valid", "val"),
        ("validation", "val"),
        ("ignored_classes", "ignore_classes"),
        ("reference", "references"),
        ("Classes", "classes"),
    ],
)
def test_a_mistyped_key_of_splits_is_refused(steel: Path, key: str, near: str) -> None:
    write_splits(steel, **{key: ["d.png"]})
    with pytest.raises(UserError, match=rf"splits\.json.*'{key}'.*'{near}'"):
        plan([steel])


def test_notes_in_splits_are_left_alone(steel: Path) -> None:
    notes = ("classes_region", "unlabeled", "cite", "note", "folds", "source", "test_ood")
    write_splits(steel, **{key: ["c.png"] for key in notes})
    assert table(plan([steel]))["steel/c"] == ("test_ood", True)


def test_splits_as_windows_writes_them(steel: Path) -> None:
    path = steel / "splits.json"
    path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig")
    assert table(plan([steel]))["steel/b"] == ("val", True)


def test_a_key_that_appears_twice_is_refused(steel: Path) -> None:
    """JSON would keep the last one, and the images of the first have no split."""
    text = (steel / "splits.json").read_text()
    (steel / "splits.json").write_text(text[:-1] + ', "val": []}')
    with pytest.raises(UserError, match=r"splits\.json.*'val'"):
        plan([steel])


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_unreadable_splits(steel: Path, text: str) -> None:
    (steel / "splits.json").write_text(text)
    with pytest.raises(UserError, match=r"splits\.json"):
        plan([steel])

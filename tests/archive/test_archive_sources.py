"""Folder conventions, splits.json and the CSV sidecar."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import Plan, plan
from pscl_hpc.errors import UserError

from .archives import labels, pixels


def picture(path: Path, image: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels((6, 8)) if image is None else image).save(path)
    return path


@pytest.fixture
def steel(tmp_path: Path) -> Path:
    """A dataset folder with four images, three masks and splits."""
    folder = tmp_path / "steel"
    for name in "abcd":
        picture(folder / "img" / f"{name}.png")
    for name in "abc":
        picture(folder / "gt" / f"{name}.png", labels((6, 8)))
    _splits(folder)
    return folder


def _splits(folder: Path, **changed: Any) -> None:
    content = {
        "classes": ["matrix", "carbide", "pore"],
        "background": 0,
        "ignore_classes": [2],
        "train": ["a.png", "d.png"],
        "val": ["b.png"],
        "test_ood": ["c.png"],
        "references": ["a.png"],
        "note": "free text",
        "folds": {"0": ["a.png"]},
    } | changed
    (folder / "splits.json").write_text(json.dumps(content))


def _table(found: Plan) -> dict[str, tuple[str, bool]]:
    return {item.id: (item.split, item.mask is not None) for item in found.items}


def test_a_dataset_folder(steel: Path) -> None:
    found = plan([steel])
    assert _table(found) == {
        "steel/a": ("train", True),
        "steel/b": ("val", True),
        "steel/c": ("test_ood", True),
        "steel/d": ("train", False),
    }
    collection = found.collections["steel"]
    assert collection.classes == ("matrix", "carbide", "pore")
    assert (collection.background, collection.ignore_classes, collection.references) == (
        0,
        (2,),
        ("steel/a",),
    )
    assert found.items[0].source == "steel/img/a.png"
    assert not found.skipped


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("img", "labels"), ("Images", "GT")])
def test_folder_names_and_other_suffixes(tmp_path: Path, images: str, masks: str) -> None:
    picture(tmp_path / "x" / images / "deep" / "a.v2.jpg")
    picture(tmp_path / "x" / masks / "deep" / "a.v2.png", labels((6, 8)))
    found = plan([tmp_path / "x"], classes=["m", "n", "o"])
    assert _table(found) == {"x/deep__a.v2": ("", True)}
    assert found.collections["x"].classes == ("m", "n", "o")


def test_a_folder_of_datasets_and_plain_folders_and_files(steel: Path, tmp_path: Path) -> None:
    picture(tmp_path / "plain" / "sub" / "p.bmp")
    picture(tmp_path / "plain" / ".hidden" / "h.png")
    picture(tmp_path / "single" / "s.png")
    both = plan([tmp_path, tmp_path / "plain", tmp_path / "single" / "s.png"])
    assert [item.id for item in both.items] == [
        "plain/sub__p",
        "single/s",
        "steel/a",
        "steel/b",
        "steel/c",
        "steel/d",
    ]
    assert both.collections["plain"].classes == ()
    reversed_order = plan([tmp_path / "single" / "s.png", tmp_path / "plain", tmp_path])
    assert [item.id for item in reversed_order.items] == [item.id for item in both.items]


def test_images_beside_the_folders_that_are_read_are_named(steel: Path, tmp_path: Path) -> None:
    picture(steel / "gt_region" / "a.png", labels((6, 8)))
    assert not plan([steel]).skipped
    picture(steel / "e.png")
    picture(steel / "img_new" / "f.png")
    picture(steel / "img_new" / "g.png")
    picture(tmp_path / "plain" / "h.png")
    picture(tmp_path / "i.png")
    found = plan([tmp_path])
    assert [item.dataset for item in found.items] == ["steel"] * 4
    assert {item.path: item.reason for item in found.skipped} == {
        str(steel): "1 image is not read (e.png): move them into img/, or out of steel/",
        str(steel / "img_new"): "2 images are not read (f.png, ...): move them into img/, or out of steel/",
        str(tmp_path / "plain"): "1 image is not read (h.png): the folder has no img/ or images/; "
        "name it as a source of its own",
        str(
            tmp_path
        ): "1 image is not read (i.png): move them into a folder of their own and name that as a source",
    }
    assert str(tmp_path / "plain") not in [item.path for item in plan([tmp_path, tmp_path / "plain"]).skipped]


def test_masks_under_an_unknown_name_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "images" / "a.png")
    picture(tmp_path / "x" / "annotations" / "a.png", labels((6, 8)))
    [skipped] = plan([tmp_path / "x"]).skipped
    assert skipped.path == str(tmp_path / "x" / "annotations")
    assert "rename the folder to gt if it holds the masks of images/" in skipped.reason
    sidecar = _csv(tmp_path / "x.csv", "file,mask", "a.png,annotations/a.png")
    named = plan([tmp_path / "x"], metadata=sidecar, classes=["m", "n", "o"])
    assert not named.skipped
    assert _table(named) == {"x/a": ("", True)}


@pytest.mark.parametrize(
    ("images", "masks", "mend"),
    [
        ("micrographs", "gt", "rename the folder of micrographs to img"),
        ("sem", "Masks", "rename the folder of micrographs to img"),
        (".", "labels", "rename the folder of micrographs to img"),
        ("micrographs", "annotations", "to img and that of the masks to gt"),
    ],
)
def test_masks_are_never_packed_as_micrographs(tmp_path: Path, images: str, masks: str, mend: str) -> None:
    picture(tmp_path / "top" / "x" / images / "a.png")
    picture(tmp_path / "top" / "x" / masks / "a.png", labels((6, 8)))
    for source in (tmp_path / "top" / "x", tmp_path / "top"):
        with pytest.raises(UserError) as caught:
            plan([source])
        assert f"{tmp_path / 'top' / 'x'} has masks in {masks}/ but no img/ or images/" in str(caught.value)
        assert str(caught.value).endswith(mend)


def test_dataset_folders_deeper_down_are_named(steel: Path, tmp_path: Path) -> None:
    steel.rename(tmp_path / "b")
    (tmp_path / "top" / "group").mkdir(parents=True)
    (tmp_path / "b").rename(tmp_path / "top" / "group" / "steel")
    with pytest.raises(UserError, match=f"deeper down; name {tmp_path / 'top' / 'group'} as a source"):
        plan([tmp_path / "top"])


def test_classes_without_a_mask_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "img" / "a.png")
    with pytest.raises(UserError, match="--classes names classes but no image has a mask; put masks"):
        plan([tmp_path / "x"], classes=["m", "n"])


def test_what_lies_about_is_named(steel: Path) -> None:
    picture(steel / "gt" / "z.png", labels((6, 8)))
    picture(steel / "img" / "a.jpg")
    _splits(steel, train=["a.png", "gone.png"])
    reasons = {Path(item.path).name: item.reason for item in plan([steel]).skipped}
    assert "without an image of the same name; rename one" in reasons["z.png"]
    assert "not there; correct the name (with its ending) in splits.json" in reasons["gone.png"]
    assert "same image id steel/a; rename one" in reasons["a.png"]


def test_a_split_whose_path_is_wrong_is_named(tmp_path: Path) -> None:
    """Its images would have no split, and be trained on."""
    folder = tmp_path / "steel"
    for name in ("x/a.png", "x/b.png", "y/a.png"):
        picture(folder / "img" / name)
    _splits(folder, train=["x/a.png"], val=["img/x/b.png"], test_ood=["z/a.png"], references=[])
    found = plan([folder])
    assert {Path(item.path).relative_to(folder / "img").as_posix() for item in found.skipped} == {
        "img/x/b.png",
        "z/a.png",
    }
    _splits(folder, train=["x/a.png"], val=["b.png"], test_ood=["y/a.png"], references=[])
    found = plan([folder])
    assert found.skipped == ()
    assert _table(found) == {
        "steel/x__a": ("train", False),
        "steel/x__b": ("val", False),
        "steel/y__a": ("test_ood", False),
    }


@pytest.mark.parametrize("listed", ["x/heat1.5.png", "x/heat1.5", "heat1.5.png", "heat1.5"])
def test_references_are_found_like_the_images_of_a_split(tmp_path: Path, listed: str) -> None:
    folder = tmp_path / "steel"
    for name in ("x/heat1.5.png", "x/heat1.png"):
        picture(folder / "img" / name)
    _splits(folder, train=[], val=[], test_ood=[], references=[listed])
    found = plan([folder])
    assert found.collections["steel"].references == ("steel/x__heat1.5",)
    assert found.skipped == ()


def test_references_that_are_no_image_or_several_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    for name in ("x/a.png", "y/a.png"):
        picture(folder / "img" / name)
    _splits(folder, train=[], val=[], test_ood=[], references=["gone.png", "a.png"])
    reasons = {Path(item.path).name: item.reason for item in plan([folder]).skipped}
    assert "a reference in splits.json but not there" in reasons["gone.png"]
    assert "that is 2 images; give its folder" in reasons["a.png"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"references": ["c"]}, "lists c as a reference and in test_ood"),
        ({"background": True}, "background must be a class index"),
        ({"ignore_classes": [True]}, "ignore_classes must be a list of class indices"),
        (
            {"classes": ["m", "carbide", "carbide"]},
            "names 'carbide' twice; give each class a name of its own",
        ),
        ({"classes": ["m", " ", "carbide"]}, "has a class without a name"),
        ({"val": ["a.png"]}, "lists a.png in train and in val"),
        ({"references": ["c.png"]}, "lists c.png as a reference and in test_ood"),
        ({"train": "a.png"}, "train must be a list of names"),
        ({"ignore_classes": ["pore"]}, "ignore_classes must be a list of class indices"),
        ({"ignore_classes": [9]}, "ignored class 9 is not a class index"),
        ({"background": "matrix"}, "background must be a class index"),
        ({"background": 5}, "background 5 is not a class index"),
        ({"classes": []}, "the classes of steel are not named"),
    ],
)
def test_splits_that_contradict_themselves(steel: Path, changed: dict[str, Any], message: str) -> None:
    _splits(steel, **changed)
    if changed.get("classes") == []:
        _splits(steel, classes=[], ignore_classes=[], background=0)
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
    _splits(steel, **{key: ["d.png"]})
    with pytest.raises(UserError) as caught:
        plan([steel])
    assert f"splits.json has the key '{key}', which is not read; did you mean '{near}'?" in str(caught.value)


def test_notes_in_splits_are_left_alone(steel: Path) -> None:
    notes = ("classes_region", "unlabeled", "cite", "note", "folds", "source", "test_ood")
    _splits(steel, **{key: ["c.png"] for key in notes})
    assert _table(plan([steel]))["steel/c"] == ("test_ood", True)


def test_splits_as_windows_writes_them(steel: Path) -> None:
    path = steel / "splits.json"
    path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig")
    assert _table(plan([steel]))["steel/b"] == ("val", True)


def test_a_key_that_stands_twice_is_refused(steel: Path) -> None:
    """JSON would keep the last one, and the images of the first have no split."""
    text = (steel / "splits.json").read_text()
    (steel / "splits.json").write_text(text[:-1] + ', "val": []}')
    with pytest.raises(UserError, match=r"splits\.json has the key 'val' twice"):
        plan([steel])


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_unreadable_splits(steel: Path, text: str) -> None:
    (steel / "splits.json").write_text(text)
    with pytest.raises(UserError, match=r"splits\.json"):
        plan([steel])


def test_images_behind_links_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    picture(folder / "img" / "a.png")
    picture(tmp_path / "store" / "batch" / "b.png")
    (folder / "img" / "more").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "up").symlink_to(folder / "img")
    (folder / "img" / "c.png").symlink_to(tmp_path / "store" / "batch" / "b.png")
    (folder / "img" / "d.png").symlink_to(tmp_path / "moved.png")
    found = plan([folder])
    assert list(_table(found)) == ["steel/a", "steel/c", "steel/d", "steel/more__batch__b"]
    packed = build(found, tmp_path / "a.h5", BuildOptions())
    assert (packed.added, [(item.path, item.reason) for item in packed.skipped]) == (
        3,
        [("steel/img/d.png", "cannot be opened (No such file or directory)")],
    )


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"st\xe4hle")
    picture(folder / "img" / "a.png").rename(folder / "img" / os.fsdecode(b"H\xe4rte.png"))
    mask = picture(folder / "gt" / "a.png", labels((6, 8)))
    mask.with_name(os.fsdecode(b"gr\xf6\xdfer.png")).write_bytes(mask.read_bytes())
    mask.rename(folder / "gt" / os.fsdecode(b"H\xe4rte.png"))
    found = plan([folder], classes=["m", "n", "o"])
    packed = build(found, tmp_path / "a.h5", BuildOptions())
    assert (packed.added, len(packed.skipped)) == (1, 1)
    assert packed.skipped[0].path.endswith("/gr\ufffd\ufffder.png")
    (record,) = Archive(tmp_path / "a.h5").records
    assert record.has_mask
    assert (record.id, record.source) == ("st\ufffdhle/H\ufffdrte", "st\ufffdhle/img/H\ufffdrte.png")


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        plan([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no image"):
        plan([tmp_path / "empty"])
    picture(tmp_path / "one" / "x" / "a.png")
    picture(tmp_path / "two" / "x" / "b.png")
    with pytest.raises(UserError, match="would both be the dataset 'x'"):
        plan([tmp_path / "one" / "x", tmp_path / "two" / "x"])


def _csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_sidecar_adds_what_is_known(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "other/b.png", "c.png"):
        picture(tmp_path / "sem" / name)
    picture(tmp_path / "annotated" / "a.png", labels((6, 8)))
    sidecar = _csv(
        tmp_path / "sem.csv",
        "file,mask,dataset,specimen,condition,alloy,magnification,um_per_pixel,split,reference",
        "a.png,annotated/a.png,,S1,aged 4h,718,5000,0.02,train,yes",
        "sub/b.png,,special,S2,,,,,test,",
        '"./c.png",,,"S, 3",,,,,,no',
    )
    found = plan([tmp_path / "sem"], metadata=sidecar, classes=["m", "n", "o"])
    items = {item.id: item for item in found.items}
    assert sorted(items) == ["sem/a", "sem/c", "sem/other__b", "special/sub__b"]
    first = items["sem/a"]
    assert first.mask is not None
    assert (first.specimen, first.condition, first.alloy) == ("S1", "aged 4h", "718")
    assert (first.magnification, first.um_per_pixel, first.split) == (5000, 0.02, "train")
    assert items["special/sub__b"].split == "test"
    assert items["sem/c"].specimen == "S, 3"
    assert found.collections["sem"].references == ("sem/a",)
    assert found.collections["sem"].classes == ("m", "n", "o")
    assert sorted(found.collections) == ["sem", "special"]


def test_a_mask_keeps_its_classes_in_another_dataset(steel: Path, tmp_path: Path) -> None:
    sidecar = _csv(tmp_path / "x.csv", "file,dataset", "b.png,other")
    collection = plan([steel], metadata=sidecar).collections["other"]
    assert (collection.classes, collection.ignore_classes) == (("matrix", "carbide", "pore"), (2,))
    assert collection.references == ()


def test_lines_that_agree_may_name_an_image_again(tmp_path: Path) -> None:
    picture(tmp_path / "sem" / "a.png")
    sidecar = _csv(
        tmp_path / "x.csv", "file,split,alloy", "a.png,train,", "a.png,train,718", "sem/a.png,,718"
    )
    (item,) = plan([tmp_path / "sem"], metadata=sidecar).items
    assert (item.split, item.alloy) == ("train", "718")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["file,split", "a.png,train", "sem/a.png,test"],
            "line 3: split of a.png is 'test', but 'train' in an",
        ),
        (["file,split,split", "a.png,train,test"], "has the column 'split' twice"),
        (["file;split", "a.png;train"], "separates its columns by ';'; save it with commas"),
        (["file,split", "", "", "aa.png,test"], "line 4: no image aa.png"),
        (["file,specimem", "a.png,x"], "unknown column 'specimem'; did you mean 'specimen'"),
        (["specimen", "x"], "has no column 'file'"),
        (["file,alloy", "a.png"], "line 2: it must have 2 cells"),
        (["file,alloy", "a.png,x,y"], "line 2: it must have 2 cells"),
        (["file,alloy", ",x"], "line 2: the column 'file' is empty"),
        (["file", "aa.png"], "line 2: no image aa.png is among the sources; did you mean 'a.png'"),
        (["file", "b.png"], "line 2: b.png names 2 images"),
        (["file,um_per_pixel", "a.png,0.1um"], "um_per_pixel is '0.1um', not a positive number"),
        (["file,magnification", "a.png,-5"], "magnification is '-5'"),
        (["file,reference", "a.png,perhaps"], "reference is 'perhaps'"),
        (["file,split", "a.png,tset"], "line 2: split is 'tset'; did you mean 'test'"),
        (["file,split", "a.png,validation"], "split is 'validation'; did you mean 'val'"),
        (["file,mask", "a.png,gone.png"], "mask gone.png is neither beside the CSV file"),
        (["file,mask", "a.png,../../secret.png"], "is neither beside the CSV file"),
        (["file,mask", "a.png,other/b.png"], "the classes of sem are not named"),
    ],
)
def test_a_sidecar_that_is_wrong_names_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    picture(tmp_path / "secret.png")
    folder = tmp_path / "in" / "sem"
    for name in ("a.png", "sub/b.png", "other/b.png"):
        picture(folder / name)
    sidecar = _csv(tmp_path / "in" / "sem.csv", *lines)
    with pytest.raises(UserError, match=message) as caught:
        plan([folder], metadata=sidecar)
    assert "\n" not in str(caught.value)


def test_an_unreadable_sidecar(tmp_path: Path) -> None:
    picture(tmp_path / "sem" / "a.png")
    (tmp_path / "x.csv").write_bytes(b"file\n\xff\xfe\x00")
    for name in ("x.csv", "gone.csv"):
        with pytest.raises(UserError, match="not a readable CSV"):
            plan([tmp_path / "sem"], metadata=tmp_path / name)

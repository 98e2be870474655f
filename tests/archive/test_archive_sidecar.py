"""What the CSV sidecar says of images, and mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError

from .archives import labels, picture, write_csv


def test_a_sidecar_adds_what_is_known(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "other/b.png", "c.png"):
        picture(tmp_path / "sem" / name)
    picture(tmp_path / "annotated" / "a.png", labels((6, 8)))
    sidecar = write_csv(
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
    sidecar = write_csv(tmp_path / "x.csv", "file,dataset", "b.png,other")
    collection = plan([steel], metadata=sidecar).collections["other"]
    assert (collection.classes, collection.ignore_classes) == (("matrix", "carbide", "pore"), (2,))
    assert collection.references == ()


def test_lines_that_agree_may_name_an_image_again(tmp_path: Path) -> None:
    picture(tmp_path / "sem" / "a.png")
    sidecar = write_csv(
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
    sidecar = write_csv(tmp_path / "in" / "sem.csv", *lines)
    with pytest.raises(UserError, match=message) as caught:
        plan([folder], metadata=sidecar)
    assert "\n" not in str(caught.value)


def test_an_unreadable_sidecar(tmp_path: Path) -> None:
    picture(tmp_path / "sem" / "a.png")
    (tmp_path / "x.csv").write_bytes(b"file\n\xff\xfe\x00")
    for name in ("x.csv", "gone.csv"):
        with pytest.raises(UserError, match="not a readable CSV"):
            plan([tmp_path / "sem"], metadata=tmp_path / name)

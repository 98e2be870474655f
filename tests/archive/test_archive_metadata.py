"""The CSV file of metadata, and mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError

from .archives import labels, picture, write_csv


def test_a_csv_file_adds_metadata(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "other/b.png", "c.png"):
        picture(tmp_path / "sem" / name)
    picture(tmp_path / "annotated" / "a.png", labels((6, 8)))
    csv_file = write_csv(
        tmp_path / "sem.csv",
        "file,mask,dataset,specimen,production_batch,alloy,magnification,um_per_pixel,split,reference",
        "a.png,annotated/a.png,,S1,aged 4h,718,5000,0.02,train,yes",
        "sub/b.png,,special,S2,,,,,test,",
        '"./c.png",,,"S, 3",,,,,,no',
    )
    found = plan([tmp_path / "sem"], metadata=csv_file, classes=["m", "n", "o"])
    items = {item.id: item for item in found.items}
    assert sorted(items) == ["sem/a", "sem/c", "sem/other__b", "special/sub__b"]
    first = items["sem/a"]
    assert first.mask is not None
    assert (first.specimen, first.production_batch, first.alloy) == ("S1", "aged 4h", "718")
    assert (first.magnification, first.um_per_pixel, first.split) == (5000, 0.02, "train")
    assert items["special/sub__b"].split == "test"
    assert items["sem/c"].specimen == "S, 3"
    assert found.collections["sem"].references == ("sem/a",)
    assert found.collections["sem"].classes == ("m", "n", "o")
    assert sorted(found.collections) == ["sem", "special"]


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("production_batch", "aged"),
        ("condition", "aged"),
        ("condition,production_batch", "aged,"),
        ("condition,production_batch", ",aged"),
        ("production_batch,condition", "aged,aged"),
    ],
)
def test_condition_is_an_alias_of_production_batch(tmp_path: Path, header: str, cells: str) -> None:
    picture(tmp_path / "sem" / "a.png")
    csv_file = write_csv(tmp_path / "x.csv", f"file,{header}", f"a.png,{cells}")
    (item,) = plan([tmp_path / "sem"], metadata=csv_file).items
    assert item.production_batch == "aged"


def test_a_mask_keeps_its_classes_in_another_dataset(steel: Path, tmp_path: Path) -> None:
    csv_file = write_csv(tmp_path / "x.csv", "file,dataset", "b.png,other")
    collection = plan([steel], metadata=csv_file).collections["other"]
    assert (collection.classes, collection.ignore_classes) == (("matrix", "carbide", "pore"), (2,))
    assert collection.references == ()


def test_lines_that_agree_may_name_an_image_again(tmp_path: Path) -> None:
    picture(tmp_path / "sem" / "a.png")
    csv_file = write_csv(
        tmp_path / "x.csv", "file,split,alloy", "a.png,train,", "a.png,train,718", "sem/a.png,,718"
    )
    (item,) = plan([tmp_path / "sem"], metadata=csv_file).items
    assert (item.split, item.alloy) == ("train", "718")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,split", "a.png,train", "sem/a.png,test"], r"line 3.*split of a\.png.*'test'.*'train'"),
        (["file,split,split", "a.png,train,test"], "column 'split'"),
        (["file,split", "", "", "aa.png,test"], r"line 4.*aa\.png"),
        (["file,specimem", "a.png,x"], "'specimem'.*'specimen'"),
        (["specimen", "x"], "column 'file'"),
        (["file,alloy", "a.png"], "line 2.*2 cells"),
        (["file,alloy", "a.png,x,y"], "line 2.*2 cells"),
        (["file,alloy", ",x"], "line 2.*'file'"),
        (["file", "aa.png"], r"line 2.*aa\.png.*'a\.png'"),
        (["file", "b.png"], r"line 2.*b\.png.*2 images"),
        (["file,um_per_pixel", "a.png,0.1 inch"], "um_per_pixel is '0.1 inch'"),
        (["file,magnification", "a.png,-5"], "magnification is '-5'"),
        (["file,reference", "a.png,perhaps"], "reference is 'perhaps'"),
        (["file,split", "a.png,tset"], "line 2: split is 'tset'.*'test'"),
        (["file,split", "a.png,validation"], "split is 'validation'.*'val'"),
        (["file,mask", "a.png,gone.png"], r"mask gone\.png"),
        (["file,mask", "a.png,../../secret.png"], r"mask \.\./\.\./secret\.png"),
        (["file,mask", "a.png,other/b.png"], "sem.*--classes"),
        (["file,condition,production_batch", "a.png,aged,cast"], "line 2.*'cast'.*condition.*'aged'"),
    ],
)
def test_an_error_in_a_csv_file_names_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    picture(tmp_path / "secret.png")
    folder = tmp_path / "in" / "sem"
    for name in ("a.png", "sub/b.png", "other/b.png"):
        picture(folder / name)
    csv_file = write_csv(tmp_path / "in" / "sem.csv", *lines)
    with pytest.raises(UserError, match=message) as caught:
        plan([folder], metadata=csv_file)
    assert "\n" not in str(caught.value)


def test_a_csv_file_that_cannot_be_read(tmp_path: Path) -> None:
    picture(tmp_path / "sem" / "a.png")
    (tmp_path / "x.csv").write_bytes(b"file\n\xff\xfe\x00")
    for name in ("x.csv", "gone.csv"):
        with pytest.raises(UserError, match=name):
            plan([tmp_path / "sem"], metadata=tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        "file;specimen;um_per_pixel;split\r\na.tif;Gie\u00dferei;0,021;train\r\n",
        "\ufefffile,specimen,um_per_pixel,split\na.tif,Gie\u00dferei,0.021,train\n",
        'file,specimen,um_per_pixel,split\na.tif,Gie\u00dferei,"0,021",Train\n',
        "sep=,\nfile,specimen,um_per_pixel,split\na.tif,Gie\u00dferei,0.021,train\n",
        "file\tspecimen\tum_per_pixel\tsplit\na.tif\tGie\u00dferei\t21 nm\ttrain\n",
        "File,Specimen,um per pixel,Split,,\n,,,,,\na.tif,Gie\u00dferei,0.021 \u00b5m,train,,\n",
        "file,specimen,um_per_pixel,split,operator\na.tif,Gie\u00dferei,2.1e-2,train,Anna\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_csv_files_as_programs_write_them(tmp_path: Path, content: str, encoding: str) -> None:
    picture(tmp_path / "sem" / "a.tif")
    (tmp_path / "m.csv").write_bytes(
        content.removeprefix("\ufeff" if encoding != "utf-8" else "").encode(encoding)
    )
    found = plan([tmp_path / "sem"], metadata=tmp_path / "m.csv")
    (item,) = found.items
    assert (item.specimen, item.split) == ("Gie\u00dferei", "train")
    assert item.um_per_pixel == pytest.approx(0.021)
    assert any("operator" in note for note in found.notes) == ("operator" in content)


@pytest.mark.parametrize(
    "name",
    [
        "x\\a.tif", "sem\\x\\a.tif", "C:\\Daten\\sem\\x\\a.tif", "/home/me/sem/x/a.tif", "./x/a.tif", "x/a", "x/a.TIF",
        "D:\\Fotos\\a.tif",
    ],
)  # fmt: skip
def test_paths_of_other_machines(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "sem" / "x" / "a.tif")
    if not name.startswith("D:"):
        picture(tmp_path / "sem" / "y" / "a.tif")
    write_csv(tmp_path / "m.csv", "file,specimen", f"{name},S1")
    found = plan([tmp_path / "sem"], metadata=tmp_path / "m.csv")
    assert [item.stem for item in found.items if item.specimen] == ["x__a"]


def test_a_path_of_another_machine_must_name_one_image(tmp_path: Path) -> None:
    for place in "xy":
        picture(tmp_path / "sem" / place / "a.tif")
    write_csv(tmp_path / "m.csv", "file,specimen", "D:\\Fotos\\a.tif,S1")
    with pytest.raises(UserError, match=r"line 2.*2 images"):
        plan([tmp_path / "sem"], metadata=tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("5000x", ",", 5000),
        ("5 kx", ",", 5000),
        ("2,5 kx", ";", 2500),
        ("10,000", ";", 10),
        ("10.000", ",", 10),
        ("10,000", ",", None),
        ("10.000", ";", None),
        ("1.000.000", ";", None),
        ("1,000.5", ",", None),
        ("0", ",", None),
        ("nan", ",", None),
        ("5 V", ",", None),
    ],
)
def test_numbers_that_could_mean_two_things_are_refused(
    tmp_path: Path, text: str, separator: str, expected: float | None
) -> None:
    picture(tmp_path / "sem" / "a.tif")
    cell = f'"{text}"' if "," in text else text
    write_csv(tmp_path / "m.csv", f"file{separator}magnification", f"a.tif{separator}{cell}")
    if expected is None:
        with pytest.raises(UserError, match="line 2: magnification is"):
            plan([tmp_path / "sem"], metadata=tmp_path / "m.csv")
    else:
        assert plan([tmp_path / "sem"], metadata=tmp_path / "m.csv").items[0].magnification == expected


def test_a_split_that_no_command_uses_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "sem" / "0007.png")
    for split, told in (("holdout", True), ("test_new", False), ("", False)):
        csv_file = write_csv(tmp_path / "x.csv", "file,split", f"0007.png,{split}")
        notes = plan([tmp_path / "sem"], metadata=csv_file).notes
        assert any(split in note for note in notes if split) == told


def test_a_name_that_lost_its_zeros_in_a_spreadsheet(tmp_path: Path) -> None:
    picture(tmp_path / "sem" / "0007.png")
    csv_file = write_csv(tmp_path / "x.csv", "file,alloy", "7,A")
    with pytest.raises(UserError, match=r"did you mean '0007\.png'"):
        plan([tmp_path / "sem"], metadata=csv_file)


def test_a_workbook_is_not_a_csv_file(tmp_path: Path) -> None:
    picture(tmp_path / "sem" / "a.tif")
    (tmp_path / "m.csv").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    with pytest.raises(UserError, match="workbook"):
        plan([tmp_path / "sem"], metadata=tmp_path / "m.csv")

"""Masks drawn as shapes in other programs: the area of known shapes, labels, and which image they belong to."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, BuildResult, build
from pscl_hpc.archive.ingest.annotations.area import area
from pscl_hpc.archive.ingest.annotations.formats import Shape, points
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError

from .archives import picture, write_csv

SIZE = (24, 32)
SQUARE = [[4, 3], [10, 3], [10, 9], [4, 9]]
"""x, y: columns 4 to 9 and rows 3 to 8."""


def expected(**boxes: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 4:10] = boxes.get("square", 1)
    return mask


def image(path: Path, seed: int = 0) -> Path:
    return picture(path, np.random.default_rng(seed).integers(0, 255, SIZE).astype(np.uint8))


def packed(folder: Path, out: Path, classes: str = "matrix,carbide,pore", **options: Any) -> BuildResult:
    return build(plan([folder], classes=classes.split(","), **options), out, BuildOptions())


def labelme(*shapes: dict[str, Any], name: str = "a.png", size: tuple[int, int] = SIZE) -> str:
    return json.dumps({"shapes": shapes, "imagePath": name, "imageHeight": size[0], "imageWidth": size[1]})


def shape(label: str, corners: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": corners, "shape_type": kind, **more}


def coco(**annotation: Any) -> str:
    entry = {"id": 1, "image_id": 7, "category_id": 3, **annotation}
    return json.dumps(
        {
            "images": [{"id": 7, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
            "annotations": [entry],
            "categories": [{"id": 3, "name": "carbide"}],
        }
    )


def column_runs(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    ends = [0, *changes, len(flat)]
    runs = np.diff(ends).tolist()
    return runs if not flat[0] else [0, *runs]


def coco_text(runs: list[int]) -> str:
    """The compressed form of pycocotools (rleToString), written from its description."""
    text = ""
    for place, run in enumerate(runs):
        value = run - (runs[place - 2] if place > 2 else 0)
        more = True
        while more:
            group = value & 31
            value >>= 5
            more = value != (-1 if group & 16 else 0)
            text += chr((group | (32 if more else 0)) + 48)
    return text


def cvat(body: str) -> str:
    return (
        "<?xml version='1.0'?><annotations><meta><labels><label><name>carbide</name></label></labels></meta>"
        f"<image id='0' name='a.png' width='{SIZE[1]}' height='{SIZE[0]}'>{body}</image></annotations>"
    )


def mask_png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


RUNS = column_runs(expected() == 1)
FILES = {
    "labelme polygon": ("a.json", labelme(shape("carbide", SQUARE))),
    "labelme rectangle": ("a.json", labelme(shape("carbide", [[10, 9], [4, 3]], "rectangle"))),
    "labelme mask": (
        "a.json",
        labelme(shape("carbide", [[4, 3], [9, 8]], "mask", mask=mask_png(np.ones((6, 6))))),
    ),
    "coco polygon": ("all.json", coco(segmentation=[np.ravel(SQUARE).tolist()])),
    "coco runs": ("all.json", coco(segmentation={"size": list(SIZE), "counts": RUNS})),
    "coco text": ("all.json", coco(segmentation={"size": list(SIZE), "counts": coco_text(RUNS)})),
    "cvat polygon": ("x.xml", cvat("<polygon label='carbide' points='4,3;10,3;10,9;4,9'/>")),
    "cvat box": ("x.xml", cvat("<box label='carbide' xtl='4' ytl='3' xbr='10' ybr='9' rotation='90'/>")),
    "cvat mask": ("x.xml", cvat("<mask label='carbide' rle='0,36' left='4' top='3' width='6' height='6'/>")),
}


@pytest.mark.parametrize("place", ["gt", "img", "."])
@pytest.mark.parametrize("form", FILES)
def test_a_square_in_each_format(tmp_path: Path, form: str, place: str) -> None:
    folder = tmp_path / "steel"
    image(folder / "img" / "a.png")
    name, text = FILES[form]
    (folder / place).mkdir(exist_ok=True)
    (folder / place / name).write_text(text)
    result = packed(folder, tmp_path / "a.h5")
    assert not result.skipped
    np.testing.assert_array_equal(Archive(tmp_path / "a.h5").read_mask(0), expected())


def test_the_area_of_shapes_is_that_of_pixel_centres() -> None:
    triangle = Shape("a", (points([[0, 0], [20, 0], [0, 20]]),))
    rows, columns = np.mgrid[:20, :30] + 0.5
    np.testing.assert_array_equal(area(triangle, 20, 30), rows + columns < 20)
    hole = Shape("a", (points(SQUARE), points([[6, 5], [8, 5], [8, 7], [6, 7]])))
    assert area(hole, *SIZE).sum() == 36 - 4
    outside = Shape("a", (points([[-5, -5], [3, -5], [3, 99], [-5, 99]]),))
    assert area(outside, *SIZE).sum() == 3 * SIZE[0]
    pixels = Shape("a", pixels=np.ones((4, 4), bool), corner=(-2, 30))
    assert area(pixels, *SIZE).sum() == 4


def test_a_later_shape_covers_an_earlier_one_and_holes_are_background(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    image(folder / "a.png")
    inner = [[5, 4], [7, 4], [7, 6], [5, 6]]
    drawn = labelme(
        shape("Carbide", SQUARE), shape("matrix", inner), shape("ignore", [[0, 0], [2, 0], [2, 2], [0, 2]])
    )
    (folder / "a.json").write_text(drawn)
    assert not packed(folder, tmp_path / "a.h5").skipped
    wanted = expected()
    wanted[4:6, 5:7] = 0
    wanted[:2, :2] = 255
    np.testing.assert_array_equal(Archive(tmp_path / "a.h5").read_mask(0), wanted)


def test_scribbles_leave_the_rest_not_annotated(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    image(folder / "img" / "a.png")
    image(folder / "img" / "b.png", 1)
    (folder / "img" / "a.json").write_text(labelme(shape("matrix", SQUARE)))
    picture(folder / "gt" / "b.png", expected(square=3))
    with pytest.raises(UserError, match=r"a\.png: .*--scribbles"):
        packed(folder, tmp_path / "refused.h5")
    assert not packed(folder, tmp_path / "a.h5", scribbles=True).skipped
    archive = Archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(archive.read_mask(0), np.where(expected() == 1, 0, 255))
    np.testing.assert_array_equal(archive.read_mask(1), np.where(expected() == 1, 2, 255))
    (folder / "splits.json").write_text(
        json.dumps({"classes": ["matrix", "carbide", "pore"], "scribbles": True})
    )
    build(plan([folder]), tmp_path / "b.h5", BuildOptions())
    np.testing.assert_array_equal(Archive(tmp_path / "b.h5").read_mask(0), archive.read_mask(0))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", labelme(shape("oxide", SQUARE)), "'oxide'.*matrix, carbide, pore"),
        ("a.json", labelme(shape("carbide", SQUARE), size=(48, 64)), "48 x 64.*24 x 32"),
        ("a.json", labelme(shape("carbide", SQUARE, "linestrip")), "linestrip"),
        ("all.json", coco(segmentation=[], bbox=[4, 3, 6, 6]), "box"),
        ("all.json", coco(segmentation={"size": list(SIZE), "counts": [5]}), "24|32"),
        ("x.xml", cvat("<polyline label='carbide' points='1,1;2,2'/>"), "polyline"),
    ],
)
def test_drawings_that_cannot_be_used_say_why(tmp_path: Path, name: str, text: str, reason: str) -> None:
    folder = tmp_path / "steel"
    image(folder / "img" / "a.png")
    image(folder / "img" / "b.png", 1)
    (folder / "gt").mkdir()
    (folder / "gt" / name).write_text(text)
    (skipped,) = packed(folder, tmp_path / "a.h5").skipped
    assert skipped.path == "steel/img/a.png"
    assert re.search(reason, skipped.reason)


def test_what_is_not_used_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    image(folder / "img" / "a.png")
    picture(folder / "gt" / "a.png", expected(square=2))
    image(folder / "img" / "b.png", 1)
    (folder / "gt" / "a.json").write_text(labelme(shape("carbide", SQUARE)))
    (folder / "gt" / "b.json").write_text(labelme(shape("carbide", SQUARE), name="b.png"))
    (folder / "gt" / "gone.json").write_text(labelme(shape("carbide", SQUARE), name="gone.png"))
    result = packed(folder, tmp_path / "a.h5")
    assert sorted(
        name for name in ("a.json", "gone.json") for item in result.skipped if name in item.reason
    ) == [
        "a.json",
        "gone.json",
    ]
    archive = Archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(archive.read_mask(0), expected(square=2))  # the mask of pixels
    np.testing.assert_array_equal(archive.read_mask(1), expected())
    (folder / "all.json").write_text(coco(segmentation=[np.ravel(SQUARE).tolist()]).replace("a.png", "b.png"))
    twice = packed(folder, tmp_path / "b.h5")
    assert any("b.json" in item.reason and "all.json" in item.reason for item in twice.skipped)
    (folder / "none.json").write_text('{"images": [], "annotations": [], "categories": []}')
    (folder / "via.json").write_text('{"regions": [{"shape_attributes": {}}], "annotations": "via"}')
    reasons = {item.reason for item in packed(folder, tmp_path / "c.h5").skipped}
    assert any("none.json" in reason and "COCO" in reason and "no image" in reason for reason in reasons)
    assert any("via.json" in reason and "LabelMe" in reason for reason in reasons)


def test_images_that_are_listed_without_shapes_have_no_mask(tmp_path: Path) -> None:
    """They are mostly those that nobody has annotated yet."""
    folder = tmp_path / "steel"
    for number, name in enumerate("ab"):
        image(folder / f"{name}.png", number)
    content = json.loads(coco(segmentation=[np.ravel(SQUARE).tolist()]))
    content["images"].append({"id": 8, "file_name": "b.png", "height": SIZE[0], "width": SIZE[1]})
    (folder / "all.json").write_text(json.dumps(content))
    found = plan([folder], classes=["matrix", "carbide"])
    assert [(item.stem, item.mask is not None) for item in found.items] == [("a", True), ("b", False)]
    assert any("1 of 2 images" in note for note in found.notes)


def test_class_names_that_are_missing_are_proposed(tmp_path: Path) -> None:
    image(tmp_path / "steel" / "a.png")
    (tmp_path / "steel" / "a.json").write_text(labelme(shape("carbide", SQUARE), shape("pore", SQUARE)))
    with pytest.raises(UserError, match="--classes BACKGROUND,carbide,pore"):
        plan([tmp_path / "steel"])


def test_names_in_one_file_are_found_by_their_folders(tmp_path: Path) -> None:
    """As exported on Windows, and with files of the same name in two folders."""
    folder = tmp_path / "steel"
    for place in ("x", "y"):
        image(folder / "images" / place / "a.png", len(place))
    content = json.loads(coco(segmentation=[np.ravel(SQUARE).tolist()]))
    content["images"][0]["file_name"] = "images\\y\\a.png"
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances.json").write_text(json.dumps(content))
    build(plan([folder], classes=["matrix", "carbide"]), tmp_path / "a.h5", BuildOptions())
    records = Archive(tmp_path / "a.h5").records
    assert [(record.id, record.has_mask) for record in records] == [
        ("steel/x__a", False),
        ("steel/y__a", True),
    ]


def test_a_file_of_shapes_may_be_named(tmp_path: Path) -> None:
    image(tmp_path / "sem" / "a.png")
    (tmp_path / "all.json").write_text(coco(segmentation=[np.ravel(SQUARE).tolist()]))
    (tmp_path / "mine.json").write_text(labelme(shape("carbide", SQUARE)))
    by_pair = plan([], pair=(tmp_path / "sem", tmp_path / "all.json"), classes=["matrix", "carbide"])
    table = write_csv(tmp_path / "x.csv", "file,mask", "a.png,mine.json")
    by_table = plan([tmp_path / "sem"], metadata=table, classes=["matrix", "carbide"])
    for number, found in enumerate((by_pair, by_table)):
        build(found, tmp_path / f"{number}.h5", BuildOptions())
        np.testing.assert_array_equal(Archive(tmp_path / f"{number}.h5").read_mask(0), expected())


def test_other_shapes_in_the_file_are_another_mask(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    image(folder / "a.png")
    (folder / "a.json").write_text(labelme(shape("carbide", SQUARE)))
    packed(folder, tmp_path / "a.h5")
    assert packed(folder, tmp_path / "a.h5").unchanged == 1
    (folder / "a.json").write_text(labelme(shape("pore", SQUARE)))
    with_other = packed(folder, tmp_path / "a.h5")
    assert "other mask" in with_other.skipped[0].reason
    # Renamed, the same image would be packed twice.
    assert "rename" not in with_other.skipped[0].reason


def test_rois_of_imagej(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile")
    folder = tmp_path / "steel"
    image(folder / "a.tif")
    image(folder / "b.tif", 1)

    def roi(name: str, corners: Any, group: int = 0) -> Any:
        made = roifile.ImagejRoi.frompoints(np.array(corners, np.float32))
        made.roitype, made.name, made.group = roifile.ROI_TYPE.POLYGON, name, group
        return made

    other = [[20, 3], [26, 3], [26, 9], [20, 9]]
    with zipfile.ZipFile(folder / "a_RoiSet.zip", "w") as archive:
        for made in (roi("carbide-1", SQUARE), roi("0006-0023", other, group=2)):
            archive.writestr(f"{made.name}.roi", made.tobytes())
    (folder / "b.roi").write_bytes(roi("carbide", SQUARE).tobytes())
    assert not packed(folder, tmp_path / "a.h5").skipped
    wanted = expected()
    wanted[3:9, 20:26] = 2
    found = Archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.read_mask(0), wanted)
    np.testing.assert_array_equal(found.read_mask(1), expected())
    (folder / "a_RoiSet.zip").rename(folder / "RoiSet_a.zip")
    assert not packed(folder, tmp_path / "named.h5").skipped
    np.testing.assert_array_equal(Archive(tmp_path / "named.h5").read_mask(0), wanted)
    (folder / "RoiSet_a.zip").rename(folder / "a_RoiSet.zip")
    (folder / "b.roi").write_bytes(roi("0006-0023", SQUARE).tobytes())
    (skipped,) = packed(folder, tmp_path / "b.h5").skipped
    assert "b.roi" in skipped.reason  # one of two classes beside the background
    (folder / "a_RoiSet.zip").unlink()
    packed(folder, tmp_path / "two.h5", "matrix,carbide")
    np.testing.assert_array_equal(Archive(tmp_path / "two.h5").read_mask(1), expected())

"""Masks in colours, with transparency, numbered particles, other counts: their classes, or the line to type."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.mask_values import parse_mask_values
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError

from .archives import picture, pixels

MASK = np.random.default_rng(5).integers(0, 3, (20, 30)).astype(np.uint8)
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
NAMES = ["matrix", "carbide", "pore"]
GIVEN = "#000000=matrix,#f00=carbide,#0000FF=pore"


def values(text: str) -> dict[int | str, str]:
    return parse_mask_values([tuple(part.split("=")) for part in text.split(",")], "--mask-values")


def dataset(folder: Path, mask: np.ndarray | Image.Image, suffix: str = "png", **tiff: Any) -> Path:
    picture(folder / "img" / "a.png", pixels((20, 30)))
    path = folder / "gt" / f"a.{suffix}"
    path.parent.mkdir(exist_ok=True)
    if suffix == "tif":
        tifffile.imwrite(path, mask, **tiff)
    else:
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(path)
    return folder


def stored(folder: Path, classes: list[str] | None = None, **options: Any) -> np.ndarray:
    out = folder.parent / "a.h5"
    out.unlink(missing_ok=True)
    result = build(
        plan([folder], classes=NAMES if classes is None else classes, **options), out, BuildOptions()
    )
    assert not result.skipped, result.skipped
    return Archive(out).read_mask(0)


def palette(order: list[int]) -> Image.Image:
    """The picture with the colours in another order of the palette."""
    image = Image.fromarray(np.argsort(order).astype(np.uint8)[MASK])
    image.putpalette(COLOURS[order].ravel().tolist())
    return image


@pytest.mark.parametrize("form", ["png", "tif", "planar", "palette", "16 bit"])
def test_the_class_of_each_colour_may_be_given(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "steel"
    if form == "palette":
        dataset(folder, palette([2, 0, 1]))
    elif form == "planar":
        dataset(folder, np.moveaxis(COLOURS[MASK], 2, 0), "tif", photometric="rgb", planarconfig="separate")
    elif form == "16 bit":
        dataset(folder, COLOURS[MASK].astype(np.uint16) * 257, "tif", photometric="rgb")
    else:
        dataset(folder, COLOURS[MASK], form, **({"photometric": "rgb"} if form == "tif" else {}))
    np.testing.assert_array_equal(stored(folder, mask_values=values(GIVEN)), MASK)
    in_file = {"classes": {"matrix": "#000000", "carbide": "#ff0000", "pore": "#00f"}}
    (folder / "splits.json").write_text(json.dumps(in_file))
    np.testing.assert_array_equal(stored(folder, []), MASK)


def test_a_grey_file_among_colour_masks_is_read_by_its_colours(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "steel", np.zeros((20, 30), np.uint8))
    assert (stored(folder, mask_values=values("#000000=carbide,#ff0000=matrix")) == 1).all()


def test_colour_masks_are_refused_with_the_line_to_type(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "steel", COLOURS[np.minimum(MASK, 1)])
    picture(folder / "img" / "b.png", pixels((20, 30), seed=1))
    picture(folder / "gt" / "b.png", COLOURS[MASK])  # only this one has blue
    line = '--mask-values "#000000=CLASS1,#0000ff=CLASS2,#ff0000=CLASS3"'
    for classes in (NAMES, []):  # which colour is which class is not guessed
        with pytest.raises(UserError, match=re.escape(line)):
            plan([folder], classes=classes)
    two = plan([folder], classes=NAMES, mask_values=values("#000000=matrix,#ff0000=carbide"))
    [skipped] = build(two, tmp_path / "a.h5", BuildOptions()).skipped
    assert "add #0000ff=CLASS" in skipped.reason
    smooth = np.array(Image.fromarray(COLOURS[MASK]).resize((300, 200)).resize((30, 20)))
    picture(folder / "gt" / "b.png", smooth)
    with pytest.raises(UserError, match="smoothing"):
        plan([folder], classes=NAMES)


def test_palettes_of_different_order_are_read_by_colour(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "steel", palette([0, 1, 2]))
    picture(folder / "img" / "b.png", pixels((20, 30), seed=1))
    palette([0, 2, 1]).save(folder / "gt" / "b.png")
    with pytest.raises(UserError, match=r"--mask-values .*#0000ff=CLASS"):
        plan([folder], classes=NAMES)
    build(plan([folder], mask_values=values(GIVEN)), tmp_path / "a.h5", BuildOptions())
    for index in range(2):
        np.testing.assert_array_equal(Archive(tmp_path / "a.h5").read_mask(index), MASK)


@pytest.mark.parametrize("colour", [0, 255])
def test_transparency_may_be_a_class(tmp_path: Path, colour: int) -> None:
    drawn = np.full((20, 30, 4), colour, np.uint8)
    drawn[:, :, 3] = (MASK == 1) * 255
    folder = dataset(tmp_path / "steel", drawn)
    shown = "#000000" if colour == 0 else "#ffffff"
    with pytest.raises(UserError, match=f'"transparent=matrix,{shown}=carbide"'):
        plan([folder], classes=["matrix", "carbide"])
    given = values(f"transparent=matrix,{shown}=carbide")
    np.testing.assert_array_equal(stored(folder, [], mask_values=given), MASK == 1)
    drawn[0, 0, 3] = 128
    with pytest.raises(UserError, match="1 half-transparent"):
        stored(dataset(tmp_path / "steel", drawn), [], mask_values=given)


def test_particles_with_numbers_are_one_class(tmp_path: Path) -> None:
    numbered = np.arange(600, dtype=np.uint16).reshape(20, 30) % 400
    folder = dataset(tmp_path / "steel", numbered, "tif")
    with pytest.raises(UserError, match=r"--mask-values 0=matrix,\*=carbide"):
        stored(folder, ["matrix", "carbide"])
    np.testing.assert_array_equal(stored(folder, [], mask_values=values("0=matrix,*=carbide")), numbered > 0)


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ((1, 2, 3), "count the classes from 1.*--mask-values 1=matrix,2=carbide,3=pore"),
        ((0, 5, 9), "--mask-values 0=matrix,5=carbide,9=pore"),
        ((0, 1, -1), "--mask-values 0=matrix,1=carbide,2=pore,-1=ignore"),
    ],
)
def test_other_numbers_are_refused_with_the_line_to_type(
    tmp_path: Path, wanted: tuple[int, ...], line: str
) -> None:
    folder = dataset(tmp_path / "steel", np.array(wanted, np.int16)[MASK], "tif")
    with pytest.raises(UserError, match=line):
        stored(folder)


def test_label_images_of_other_programs(tmp_path: Path) -> None:
    """napari saves 32 and 64-bit integers, ImageJ 32-bit floats, ilastik counts from 1 and adds to the name."""
    folder = tmp_path / "steel"
    for dtype in (np.int32, np.int64, np.uint32, np.float32):
        np.testing.assert_array_equal(stored(dataset(folder, MASK.astype(dtype), "tif")), MASK)
    (folder / "gt" / "a.tif").unlink()
    tifffile.imwrite(folder / "gt" / "a_Simple Segmentation.tif", MASK + 1)
    given = values("1=matrix,2=carbide,3=pore")
    np.testing.assert_array_equal(stored(folder, [], mask_values=given), MASK)


def test_the_format_of_a_mask_does_not_depend_on_its_name(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "steel", MASK)
    (folder / "gt" / "a.png").rename(folder / "gt" / "a.tif")
    np.testing.assert_array_equal(stored(folder), MASK)


@pytest.mark.parametrize(
    "classes",
    [{"matrix": 0, "carbide": 1, "pore": 2}, {"2": "pore", "0": "matrix", "1": "carbide"}],
)
def test_classes_may_be_an_object(tmp_path: Path, classes: dict[str, Any]) -> None:
    folder = dataset(tmp_path / "steel", MASK)
    (folder / "splits.json").write_text(json.dumps({"classes": classes}))
    np.testing.assert_array_equal(stored(folder, []), MASK)
    assert Archive(tmp_path / "a.h5").collections["steel"].classes == tuple(NAMES)


def test_classes_as_values_of_the_masks(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "steel", np.array([0, 127, 255], np.uint8)[MASK])
    (folder / "splits.json").write_text(json.dumps({"classes": {"matrix": 0, "carbide": 127, "ignore": 255}}))
    np.testing.assert_array_equal(stored(folder, []), np.array([0, 1, 255], np.uint8)[MASK])
    for wrong in ({"matrix": 0, "carbide": 0}, {"matrix": "red", "carbide": 1}):
        (folder / "splits.json").write_text(json.dumps({"classes": wrong}))
        with pytest.raises(UserError, match=r"splits\.json"):
            plan([folder])

"""Reading masks: encodings of class indices, sizes, and errors."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Archive, Collection
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.masks import read_mask
from pscl_hpc.archive.ingest.sources import plan

from .archives import STEEL, decode, labels, picture, pixels, write_csv


def _read_mask(path: Path, collection: Collection = STEEL, cropped: int = 20) -> np.ndarray:
    return read_mask(path, collection, 20, 30, cropped)


@pytest.mark.parametrize("form", ["grey", "palette", "rgb", "16 bit", "tif", "bmp"])
def test_mask_encodings(tmp_path: Path, form: str) -> None:
    mask = labels((20, 30))
    path = tmp_path / ("a.tif" if form == "tif" else "a.bmp" if form == "bmp" else "a.png")
    if form == "palette":
        image = Image.fromarray(mask)
        image.putpalette([value for index in range(256) for value in (255 - index, index // 2, 7)])
        image.save(path)
    elif form == "rgb":
        Image.fromarray(np.repeat(mask[:, :, None], 3, axis=2)).save(path)
    elif form == "16 bit":
        path.write_bytes(imagecodecs.png_encode(mask.astype(np.uint16)))
    elif form == "tif":
        tifffile.imwrite(path, mask)
    else:
        Image.fromarray(mask).save(path)
    np.testing.assert_array_equal(_read_mask(path), mask)
    np.testing.assert_array_equal(_read_mask(path, cropped=15), mask[:15])


def test_masks_and_images_may_be_larger_than_the_limit_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pillow's limit, 179 million pixels by default, made small in place of files that are large.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    mask = labels((20, 30))
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(_read_mask(tmp_path / "a.png"), mask)
    Image.fromarray(mask).save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(decode(tmp_path / "a.bmp")[:, :, 0], mask)


def test_a_binary_mask_of_one_bit(tmp_path: Path) -> None:
    mask = labels((20, 30)) == 1
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(_read_mask(tmp_path / "a.png"), mask)


def test_a_mask_that_was_cropped_already_fits(tmp_path: Path) -> None:
    mask = labels((15, 30))
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(_read_mask(tmp_path / "a.png", cropped=15), mask)


def test_masks_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    mask = labels((20, 30))
    Image.fromarray(pixels((20, 30, 3))).save(tmp_path / "colour.png")
    Image.fromarray(mask).save(tmp_path / "lossy.jpg")
    Image.fromarray(mask[:, :-1]).save(tmp_path / "narrow.png")
    Image.fromarray(np.where(mask == 1, 7, mask).astype(np.uint8)).save(tmp_path / "unknown.png")
    Image.fromarray(np.where(mask == 1, 255, 0).astype(np.uint8)).save(tmp_path / "black-white.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "narrow.png").read_bytes()[:80])
    tifffile.imwrite(tmp_path / "float.tif", mask.astype(np.float32))
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(mask).save(tmp_path / "renamed.png", "JPEG")
    two = Collection("two", ("a", "b"))
    for name, collection, reason in (
        ("colour.png", STEEL, r"colour\.png"),
        ("lossy.jpg", STEEL, r"lossy\.jpg"),
        ("narrow.png", STEEL, r"narrow\.png.*20 x 29.*20 x 30"),
        ("unknown.png", STEEL, r"7.*steel.*0 to 2.*unknown\.png"),
        ("black-white.png", two, r"black-white\.png.*0 and 255"),
        ("torn.png", STEEL, r"damaged.*torn\.png"),
        ("float.tif", STEEL, r"float32.*float\.tif"),
        ("gone.png", STEEL, r"gone\.png"),
        ("text.png", STEEL, r"damaged.*text\.png"),
        ("renamed.png", STEEL, r"renamed\.png.*JPEG"),
    ):
        with pytest.raises(Unreadable, match=reason):
            _read_mask(tmp_path / name, collection)


@pytest.fixture
def two_masks(tmp_path: Path) -> Path:
    """A dataset folder whose image ``b`` has the masks b.png and b.tif, which are equal."""
    folder = tmp_path / "steel"
    for name in "ab":
        picture(folder / "img" / f"{name}.png")
        picture(folder / "gt" / f"{name}.png", labels((6, 8)))
    tifffile.imwrite(folder / "gt" / "b.tif", labels((6, 8)).astype(np.uint16))
    picture(folder / "gt" / "b.jpg", labels((6, 8), 5))
    return folder


@pytest.mark.parametrize("form", ["other pixels", "other size", "torn", "colour-coded"])
def test_two_masks_of_one_name_that_differ_are_both_named(two_masks: Path, form: str, tmp_path: Path) -> None:
    """The program does not guess which one is right."""
    other = labels((6, 8))
    other[-1, -1] ^= 1
    path = two_masks / "gt" / "b.tif"
    if form == "torn":
        path.write_bytes(path.read_bytes()[:20])
    else:
        image = {"other pixels": other, "other size": other[:-1], "colour-coded": pixels((6, 8, 3))}[form]
        tifffile.imwrite(path, image, photometric="rgb" if image.ndim == 3 else "minisblack")
    out = tmp_path / "a.h5"
    result = build(plan([two_masks], classes=["a", "b", "c"]), out, BuildOptions())
    assert [record.id for record in Archive(out).records] == ["steel/a"]
    (skipped,) = result.skipped
    assert skipped.path == "steel/img/b.png"
    assert "gt/b.png" in skipped.reason
    assert "gt/b.tif" in skipped.reason


def test_two_masks_of_one_name_that_agree_are_one(two_masks: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    assert not build(plan([two_masks], classes=["a", "b", "c"]), out, BuildOptions()).skipped
    np.testing.assert_array_equal(Archive(out).read_mask(1), labels((6, 8)))


def test_the_csv_file_chooses_one_of_two_masks(two_masks: Path, tmp_path: Path) -> None:
    picture(two_masks / "gt" / "b.png", labels((6, 8), 9))
    named = write_csv(tmp_path / "x.csv", "file,mask", "b.png,gt/b.png")
    out = tmp_path / "a.h5"
    found = plan([two_masks], metadata=named, classes=["a", "b", "c"])
    assert not build(found, out, BuildOptions()).skipped
    np.testing.assert_array_equal(Archive(out).read_mask(1), labels((6, 8), 9))

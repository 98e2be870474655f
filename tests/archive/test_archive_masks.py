"""Reading masks: encodings of class indices, sizes, and errors."""

from __future__ import annotations

import json
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
from pscl_hpc.errors import UserError

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
    tifffile.imwrite(tmp_path / "float.tif", mask.astype(np.float32) / 2)
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


@pytest.mark.parametrize("values", [[0, 255, 255], [0, 127, 255], [0, 128, 255]])
def test_grey_levels_are_never_taken_for_not_annotated(tmp_path: Path, values: list[int]) -> None:
    picture(tmp_path / "a.png", np.array(values, np.uint8)[labels((20, 30)) % 3])
    with pytest.raises(Unreadable, match=r"a\.png.*--mask-values 0=matrix,.*255=\w+, .*255=ignore"):
        _read_mask(tmp_path / "a.png")


def test_a_mask_in_which_nothing_is_painted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", np.full((20, 30), 255, np.uint8))
    with pytest.raises(
        Unreadable, match=r"a\.png has only the value 255, so nothing.*--mask-values 255=CLASS"
    ):
        read_mask(tmp_path / "a.png", STEEL, 20, 30, 20)


def test_the_meaning_of_values_can_be_given(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    mask = labels((6, 8))
    picture(folder / "img" / "a.png")
    picture(folder / "gt" / "a.png", np.where(mask == 2, 80, mask))
    names = {"0": "pore", "1": "matrix", "80": "carbide", "255": "ignore"}
    content = {"classes": ["matrix", "carbide", "pore"], "mask_values": names}
    for classes, indices in ((content["classes"], [2, 0, 1]), (None, [0, 1, 2])):
        content["classes"] = classes or []
        (folder / "splits.json").write_text(json.dumps(content))
        out = tmp_path / f"{len(content['classes'])}.h5"
        build(plan([folder]), out, BuildOptions())
        expected = np.array([*indices, 255], np.uint8)[np.where(mask == 255, 3, mask)]
        np.testing.assert_array_equal(Archive(out).read_mask(0), expected)
    assert Archive(out).collections["steel"].classes == ("pore", "matrix", "carbide")
    for wrong, named in (
        ({"0": "oxide"}, "oxide"),
        ({"a": "matrix"}, "'a'"),
        ({"0": 1}, "mask_values"),
        ([0], "mask_values"),
    ):
        changed = content | {"classes": ["matrix", "carbide"], "mask_values": wrong}
        (folder / "splits.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=named):
            plan([folder])


def test_masks_that_may_count_from_one_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    picture(folder / "img" / "a.png")
    mask = labels((6, 8)) % 2 + 1
    picture(folder / "gt" / "a.png", mask)
    classes = ["m", "n", "o"]
    with pytest.raises(UserError, match=r"--mask-values 1=m,2=n,3=o .*--mask-values 1=n,2=o"):
        plan([folder], classes=classes)
    # Each of the two mends, and a declaration of 0.
    meanings = ({1: "m", 2: "n", 3: "o"}, mask - 1), ({1: "n", 2: "o"}, mask)
    for number, (values, expected) in enumerate(meanings):
        found = plan([folder], classes=classes, mask_values=values)
        archive = Archive(build(found, tmp_path / f"{number}.h5", BuildOptions()).path)
        np.testing.assert_array_equal(archive.read_mask(0), expected)
    assert plan([folder], classes=["m", "n"], scribbles=True).items
    splits = {"classes": classes, "ignore_classes": [0], "background": 1}
    (folder / "splits.json").write_text(json.dumps(splits))
    assert plan([folder]).items
    (folder / "splits.json").unlink()
    # One mask with 0 shows that all count from 0; a mask that cannot be read shows nothing.
    picture(folder / "img" / "b.png")
    picture(folder / "gt" / "b.png", labels((6, 8)))
    assert plan([folder], classes=classes).items


def test_all_grey_levels_of_a_scaled_mask_are_in_both_mends(tmp_path: Path) -> None:
    Image.fromarray(np.array([0, 127, 255], np.uint8)[labels((20, 30)) % 3]).save(tmp_path / "a.png")
    with pytest.raises(
        Unreadable, match="0=matrix,127=carbide,255=pore, or --mask-values 0=matrix,127=carbide,255=ignore"
    ):
        _read_mask(tmp_path / "a.png")


def test_white_is_the_class_in_a_black_and_white_tiff(tmp_path: Path) -> None:
    mask = labels((20, 30)) == 1
    for photometric in ("minisblack", "miniswhite"):
        stored = mask if photometric == "minisblack" else ~mask
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, software="paint")
        np.testing.assert_array_equal(_read_mask(tmp_path / "a.tif"), mask)
    tifffile.imwrite(tmp_path / "a.tif", mask)  # as a script writes it: white is zero, but True is the class
    np.testing.assert_array_equal(_read_mask(tmp_path / "a.tif"), mask)
    tifffile.imwrite(tmp_path / "a.tif", labels((20, 30)), photometric="miniswhite")
    with pytest.raises(Unreadable, match=r"a\.tif"):
        _read_mask(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_drawn_in_alpha_is_refused(tmp_path: Path, name: str, colour: int) -> None:
    mask = labels((20, 30)) == 1
    drawn = np.full((20, 30, 4), colour, np.uint8)
    drawn[:, :, 3] = mask * 255
    Image.fromarray(drawn).save(tmp_path / name)
    with pytest.raises(Unreadable, match="alpha"):
        _read_mask(tmp_path / name)
    drawn[:, :, :3] = mask[:, :, None]
    Image.fromarray(drawn).save(tmp_path / name)
    np.testing.assert_array_equal(_read_mask(tmp_path / name), mask)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_palettes_that_differ_within_a_collection_are_refused(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "steel"
    palettes = {"a": [0, 0, 0, 255, 0, 0, 0, 0, 255], "b": [0, 0, 0, 0, 0, 255, 255, 0, 0]}
    mask = labels((6, 8)) % 3

    def save(name: str, palette: list[int], indices: np.ndarray) -> None:
        image = Image.fromarray(indices)
        image.putpalette(palette)
        image.save(picture(folder / "gt" / f"{name}.{suffix}"))

    for name in palettes:
        picture(folder / "img" / f"{name}.png")
        save(name, palettes["a"], mask)
    assert not plan([folder], classes=["m", "n", "o"]).skipped
    save("b", palettes["b"], mask)
    with pytest.raises(UserError, match=rf"a\.{suffix}.*b\.{suffix}"):
        plan([folder], classes=["m", "n", "o"])
    save("a", palettes["a"], np.where(mask == 2, 0, mask))  # red is 1
    save("b", palettes["b"], np.where(mask == 1, 0, mask))  # red is 2
    with pytest.raises(UserError, match=rf"a\.{suffix}.*b\.{suffix}"):
        plan([folder], classes=["m", "n", "o"])

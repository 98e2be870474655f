"""Reading masks: what encodes class indices, what fits its image, and what is refused."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Collection
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.masks import read_mask

from .archives import STEEL, decode, labels, pixels


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


def test_masks_and_images_may_be_larger_than_pillow_likes(
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
        ("colour.png", STEEL, "colour.png is colour-coded; a mask is an image of class indices"),
        ("lossy.jpg", STEEL, "lossy.jpg is not PNG, BMP or TIFF"),
        ("narrow.png", STEEL, "narrow.png is 20 x 29 pixels, the image 20 x 30; export both at one size"),
        ("unknown.png", STEEL, "classes 0 to 2 .*unknown.png.; correct the mask, or name the class"),
        ("black-white.png", two, "write 0 and 1"),
        ("torn.png", STEEL, "damaged mask torn.png"),
        ("float.tif", STEEL, "not class indices .*float.tif.; save it as 8-bit class indices"),
        ("gone.png", STEEL, "damaged mask gone.png"),
        ("text.png", STEEL, "damaged mask text.png"),
        ("renamed.png", STEEL, "renamed.png is a JPEG"),
    ):
        with pytest.raises(Unreadable, match=reason):
            _read_mask(tmp_path / name, collection)

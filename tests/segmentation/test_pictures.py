"""Class colours, overlays and file names."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.segmentation import ClassList
from pscl_hpc.segmentation.palette import BACKGROUND, class_colours, hex_colour
from pscl_hpc.segmentation.pictures import (
    archive_overlay,
    overlay,
    picture_name,
    picture_names,
    png_bytes,
    read_labels,
)

from .helpers import ALLOY

THREE = ClassList(("matrix", "phase", "bar"), 0, (2,))


@pytest.mark.parametrize("count", [1, 2, 12, 40, 255])
@pytest.mark.parametrize("background", [0, 1])
def test_colours_are_distinct_and_independent_of_the_count(count: int, background: int) -> None:
    colours = class_colours(count, background)
    assert colours.shape == (count, 3)
    assert len(np.unique(colours, axis=0)) == count
    if background < count:
        assert tuple(colours[background]) == BACKGROUND
    assert np.array_equal(class_colours(count + 5, background)[:count], colours)


def test_neighbouring_colours_are_far_apart() -> None:
    colours = class_colours(12).astype(float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert distance[~np.eye(12, dtype=bool)].min() > 45
    assert hex_colour(class_colours(2)[1]) == "#e69f00"


def test_background_ignored_and_unannotated_pixels_show_the_micrograph() -> None:
    image = np.linspace(0, 1, 36, dtype=np.float32).reshape(1, 6, 6)
    grey = np.repeat(np.round(image[0] * 255)[..., None], 3, axis=2).astype(np.uint8)
    for value in (0, 2, 255):
        shown = overlay(image, np.full((6, 6), value, np.uint8), THREE)
        assert np.abs(shown.astype(int) - grey).max() <= 1


def test_a_region_is_tinted_and_outlined() -> None:
    labels = np.zeros((9, 9), np.uint8)
    labels[2:7, 2:7] = 1
    shown = overlay(np.full((3, 9, 9), 0.5, np.float32), labels, THREE)
    colour = class_colours(3)[1]
    assert np.array_equal(shown[2, 2], colour)
    assert np.array_equal(shown[0, 0], [128, 128, 128])
    inside = shown[4, 4].astype(int)
    assert not np.array_equal(inside, colour)
    assert inside[0] > inside[2]


def test_overlay_in_bands_equals_the_whole(archive_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pscl_hpc.segmentation.pictures._BAND", 7)
    archive = Archive(archive_file)
    index = archive.find("alloy/val0").index
    labels = archive.read_mask(index)
    whole = overlay(archive.read_unit(index, channels=3), labels, ClassList.of(ALLOY))
    assert np.array_equal(archive_overlay(archive, index, labels, ClassList.of(ALLOY)), whole)


def test_class_indices_survive_the_png(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "a.png").write_bytes(png_bytes(labels))
    assert np.array_equal(read_labels(tmp_path / "a.png"), labels)
    assert Image.open(io.BytesIO(png_bytes(labels))).mode == "L"


def test_pictures_of_ids_that_differ_by_case_do_not_replace_each_other() -> None:
    names = picture_names(["x/A", "x/a", "x/b"])
    assert names["x/b"] == "x__b"
    assert len({name.casefold() for name in names.values()}) == 3
    assert picture_names(["x/a", "x/A"])["x/A"] == names["x/A"]


def test_pngs_beyond_the_pixel_limit_of_pillow_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lower Pillow's limit (179 million pixels) instead of writing a large file.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "a.png").write_bytes(png_bytes(labels))
    assert np.array_equal(read_labels(tmp_path / "a.png"), labels)


def test_damaged_files_have_no_labels(tmp_path: Path) -> None:
    whole = png_bytes(np.zeros((64, 64), np.uint8))
    for content in (b"", b"not an image", whole[:40], whole[:20]):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.png"):
            read_labels(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        ("steel/0007", "steel__0007"),
        ("steel/../../etc/passwd", "steel__..__..__etc__passwd"),
        ("../../up", "__..__up"),
        ("a\\b\0c", "a__b_c"),
        ("..", "_"),
        ("", "_"),
    ],
)
def test_picture_names_stay_inside_their_folder(image_id: str, name: str, tmp_path: Path) -> None:
    assert picture_name(image_id) == name
    assert (tmp_path / picture_name(image_id)).resolve().parent == tmp_path.resolve()

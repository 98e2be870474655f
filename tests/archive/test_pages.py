"""Files with several pages: copies are left out, stacks have stacks of masks, and a page can be chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, BuildResult, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.archive.options import options_from_json, options_to_json
from pscl_hpc.cli.main import main
from pscl_hpc.errors import EXIT_INPUT, UserError

from .archives import labels, texture

IMAGE = texture((256, 320))


def packed(folder: Path, out: Path, **options: int) -> BuildResult:
    classes = ["a", "b", "c"] if (folder / "gt").exists() else []
    return build(plan([folder], classes=classes), out, BuildOptions(**options))


def write(path: Path, *pages: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            colour = "rgb" if page.ndim == 3 else "minisblack"
            writer.write(page, photometric=colour, metadata=None, **options)


def test_levels_of_a_pyramid_that_are_not_declared_are_left_out(tmp_path: Path) -> None:
    levels = [IMAGE[:: 1 << level, :: 1 << level] for level in range(4)]
    write(tmp_path / "x" / "a.tif", levels[0], levels[2], levels[1], levels[3])
    result = packed(tmp_path / "x", tmp_path / "a.h5")
    archive = Archive(tmp_path / "a.h5")
    assert [record.id for record in archive.records] == ["x/a"]
    np.testing.assert_array_equal(archive.read_image(0)[:, :, 0], IMAGE)
    (warning,) = result.warnings
    assert all(f"page {number}" in warning for number in (1, 2, 3))


def test_a_slide_is_packed_without_thumbnail_and_label(tmp_path: Path) -> None:
    slide = np.stack([IMAGE, IMAGE // 2, 255 - IMAGE], axis=2)
    path = tmp_path / "x" / "a.tif"
    path.parent.mkdir()
    with tifffile.TiffWriter(path) as writer:
        text = "Aperio Image Library v10.0.51\r\n320x256 [0,0 320x256] (128x128) |AppMag = 20|MPP = 0.25"
        writer.write(slide, tile=(128, 128), photometric="rgb", description=text, metadata=None)
        writer.write(slide[::4, ::4], photometric="rgb", description="Aperio\r\n", metadata=None)
        writer.write(
            slide[::2, ::2], tile=(64, 64), photometric="rgb", description="Aperio\r\n", metadata=None
        )
        writer.write(
            np.zeros((50, 40, 3), np.uint8), photometric="rgb", description="Aperio\r\nlabel", metadata=None
        )
    packed(tmp_path / "x", tmp_path / "a.h5")
    (record,) = Archive(tmp_path / "a.h5").records
    assert (record.height, record.width) == IMAGE.shape
    assert (record.um_per_pixel, record.magnification) == (0.25, 20)


@pytest.mark.parametrize("first", [0, 1])
def test_a_coloured_page_that_shows_a_deeper_one_is_left_out(tmp_path: Path, first: int) -> None:
    deep = IMAGE.astype(np.uint16) * 200
    overlay = np.stack([IMAGE] * 3, axis=2)
    overlay[100:140, 100:160] = (255, 0, 0)
    pages = [deep, overlay]
    write(tmp_path / "x" / "img" / "a.tif", pages[first], pages[1 - first])
    write(tmp_path / "x" / "gt" / "a.tif", labels((256, 320)))
    packed(tmp_path / "x", tmp_path / "a.h5")
    archive = Archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(archive.read_image(0)[:, :, 0], deep)
    np.testing.assert_array_equal(archive.read_mask(0), labels((256, 320)))
    packed(tmp_path / "x", tmp_path / "b.h5", page=1 - first)
    chosen = Archive(tmp_path / "b.h5")
    np.testing.assert_array_equal(chosen.read_image(0), overlay)
    recorded = chosen.records[0].ingest
    assert recorded is not None
    assert recorded.page == 1 - first


def test_pages_of_different_kinds_need_a_choice(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.tif", IMAGE, texture((256, 320), 1).astype(np.uint16), texture((200, 100), 2))
    with pytest.raises(UserError, match=r"0: 256 x 320, 8-bit grey; 1: 256 x 320, 16-bit grey.*--page 0"):
        packed(tmp_path / "x", tmp_path / "a.h5")
    packed(tmp_path / "x", tmp_path / "a.h5", page=2)
    np.testing.assert_array_equal(Archive(tmp_path / "a.h5").read_image(0)[:, :, 0], texture((200, 100), 2))
    with pytest.raises(UserError, match="no page 3"):
        packed(tmp_path / "x", tmp_path / "b.h5", page=3)


def test_a_stack_of_masks_belongs_to_a_stack_of_images(tmp_path: Path) -> None:
    stack = [texture((40, 50), seed) for seed in range(3)]
    masks = [labels((40, 50), seed) for seed in range(3)]
    write(tmp_path / "x" / "img" / "a.tif", *stack)
    write(tmp_path / "x" / "gt" / "a.tif", *masks)
    packed(tmp_path / "x", tmp_path / "a.h5")
    archive = Archive(tmp_path / "a.h5")
    assert [record.id for record in archive.records] == ["x/a#0", "x/a#1", "x/a#2"]
    for place in range(3):
        np.testing.assert_array_equal(archive.read_image(place)[:, :, 0], stack[place])
        np.testing.assert_array_equal(archive.read_mask(place), masks[place])
    packed(tmp_path / "x", tmp_path / "one.h5", page=2)
    np.testing.assert_array_equal(Archive(tmp_path / "one.h5").read_mask(0), masks[2])
    write(tmp_path / "x" / "img" / "a.tif", stack[0])
    packed(tmp_path / "x", tmp_path / "mask.h5", page=1)
    np.testing.assert_array_equal(Archive(tmp_path / "mask.h5").read_mask(0), masks[1])
    for images, some in ((stack, masks[:2]), (stack[:1], masks[:2]), (stack, masks[:1])):
        write(tmp_path / "x" / "img" / "a.tif", *images)
        write(tmp_path / "x" / "gt" / "a.tif", *some)
        with pytest.raises(UserError, match=rf"mask gt/a\.tif has {len(some)} page.*image {len(images)}"):
            packed(tmp_path / "x", tmp_path / "b.h5")


def test_a_range_for_the_collection(tmp_path: Path) -> None:
    """Images of one exposure keep their differences in brightness; images that are added use the same range."""
    folder = tmp_path / "x"
    for name, factor in (("a", 100), ("b", 50)):
        write(folder / f"{name}.tif", IMAGE.astype(np.uint16) * factor)
    packed(folder, tmp_path / "own.h5")
    own = [(record.low, record.high) for record in Archive(tmp_path / "own.h5").records]
    packed(folder, tmp_path / "a.h5", common_range=True)
    common = {(record.low, record.high) for record in Archive(tmp_path / "a.h5").records}
    assert common == {(own[1][0], own[0][1])}
    write(folder / "c.tif", IMAGE.astype(np.uint16) * 250)
    packed(folder, tmp_path / "a.h5", common_range=True)
    assert {(record.low, record.high) for record in Archive(tmp_path / "a.h5").records} == common


def test_images_of_several_types_in_one_collection_are_named(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.tif", IMAGE)
    write(tmp_path / "x" / "b.tif", IMAGE.astype(np.uint16) * 200)
    (warning,) = packed(tmp_path / "x", tmp_path / "a.h5").warnings
    assert "1 of 8 bits" in warning
    assert "1 of 16 bits" in warning


def test_page_and_range_are_recorded_unless_they_are_usual() -> None:
    usual = BuildOptions()
    assert "page" not in options_to_json(usual)
    assert "range" not in options_to_json(usual)
    changed = BuildOptions(page=3, common_range=True)
    found = options_from_json(options_to_json(changed))
    assert found is not None
    assert (found.page, found.common_range) == (3, True)
    for wrong in ('"page": -2', '"page": true', '"range": "x"', '"other": 1'):
        with pytest.raises(ValueError, match="ingest option"):
            options_from_json(options_to_json(usual)[:-1] + f", {wrong}}}")


def test_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "x" / "a.tif", IMAGE, texture((200, 100), 2))
    command = ["archive", "build", str(tmp_path / "x"), "--out", str(tmp_path / "a.h5")]
    for flag, value in (("--page", "one"), ("--page", "-1"), ("--range", "all"), ("--mask-values", "#12=a")):
        assert main([*command, flag, value]) == EXIT_INPUT
        assert flag in capsys.readouterr().err
    assert main([*command, "--page", "1", "--range", "collection"]) == 0
    (record,) = Archive(tmp_path / "a.h5").records
    assert (record.height, record.width) == (200, 100)
    assert main(["archive", "info", str(tmp_path / "a.h5")]) == 0
    assert "--page 1 --range collection" in capsys.readouterr().out


def test_an_image_and_its_mask_in_one_file_need_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "x" / "a.tif"
    write(path, IMAGE, np.where(labels(IMAGE.shape) == 1, 255, 0).astype(np.uint8))
    with pytest.raises(UserError, match=r"page 1 looks like a mask.*--page 0"):
        packed(tmp_path / "x", tmp_path / "a.h5")
    packed(tmp_path / "x", tmp_path / "a.h5", page=0)
    np.testing.assert_array_equal(Archive(tmp_path / "a.h5").read_image(0)[:, :, 0], IMAGE)

"""Information bars are found to the row, and only where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.prepare import bar_height
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.archive.options import AUTO_CROP

from .archives import labels, texture, with_bar


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_bar_is_found_to_the_row(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([(242, 322), (384, 512), (471, 512), (256, 256)]))
    # Lower bars, half of whose rows are frame and text, can be missed: that leaves them in, and cuts no image.
    rows = max(16, int(size[0] * data.draw(st.floats(0.04, 0.12))))
    ink, paper = data.draw(st.sampled_from([(255, 0), (0, 255), (230, 40), (0, 200)]))
    frame = data.draw(st.integers(0, 2))
    image = with_bar(texture(size, data.draw(st.integers(0, 99))), rows, ink=ink, paper=paper, frame=frame)
    assert bar_height(image[size[0] // 2 :], size[0], 255.0) == rows


def test_deep_images_and_jpeg(tmp_path: Path) -> None:
    image = with_bar(texture((484, 645)), 40, ink=255, paper=0)
    deep = image.astype(np.uint16) * 257
    assert bar_height(deep[200:], 484, 65535.0) == 40
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=90)
    found = bar_height(np.asarray(Image.open(tmp_path / "a.jpg"))[200:], 484, 255.0)
    assert 40 <= found <= 42  # the edge is blurred over a row by the compression
    assert bar_height(np.repeat(image[200:, :, None], 3, axis=2), 484, 255.0) == 40


def test_a_bar_is_found_despite_invalid_values() -> None:
    image = with_bar(texture((484, 645)), 40, ink=255, paper=0).astype(np.float32)
    image[300, 5:9] = np.inf, -np.inf, np.nan, np.inf
    for full_range in (255.0, np.inf):
        assert bar_height(image[200:], 484, full_range) == 40
    assert bar_height(np.full((200, 300), np.inf, np.float32), 400, np.inf) == 0


def _black_bottom(size: tuple[int, int]) -> np.ndarray:
    image = texture(size)
    image[-60:] = 0
    return image


def _particles_on_black(size: tuple[int, int]) -> np.ndarray:
    random = np.random.default_rng(1)
    image = np.zeros(size, np.uint8)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for _ in range(60):
        y, x, radius = random.uniform(0, size[0]), random.uniform(0, size[1]), random.uniform(5, 30)
        image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 200
    return image


def _slanted_crack(size: tuple[int, int]) -> np.ndarray:
    image = texture(size)
    rows, columns = np.mgrid[: size[0], : size[1]]
    image[rows > size[0] - 60 + 40 * columns / size[1]] = 2
    return image


@pytest.mark.parametrize(
    "image",
    [
        texture((484, 645)),
        _black_bottom((484, 645)),
        _particles_on_black((484, 645)),
        _slanted_crack((484, 645)),
        np.zeros((484, 645), np.uint8),
        np.full((484, 645), 255, np.uint8),
        np.tile(np.arange(255, dtype=np.uint8), (484, 2)),
        texture((20, 30)),
        texture((1, 1)),
    ],
    ids=["texture", "black bottom", "particles", "crack", "black", "white", "ramp", "small", "one pixel"],
)
def test_no_bar_is_seen_where_there_is_none(image: np.ndarray) -> None:
    height = len(image)
    assert bar_height(image[height // 2 :], height, 255.0) == 0


def test_build_crops_image_and_mask(tmp_path: Path) -> None:
    image, mask = with_bar(texture((484, 645)), 38, ink=255, paper=0), labels((484, 645))
    for folder, stored in (("img", image), ("gt", mask)):
        (tmp_path / "sem" / folder).mkdir(parents=True)
        Image.fromarray(stored).save(tmp_path / "sem" / folder / "a.png")
    options = BuildOptions(crop_bottom=AUTO_CROP)
    result = build(plan([tmp_path / "sem"], classes=["a", "b", "c"]), tmp_path / "a.h5", options)
    assert result.cropped == {"sem/a": 38}
    archive = Archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(archive.read_image(0)[:, :, 0], image[:446])
    np.testing.assert_array_equal(archive.read_mask(0), mask[:446])

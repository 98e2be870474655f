"""Windows at any angle and scale: geometry against an analytic image, masks with their images, exact copies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.models.unet import UNetConfig
from pscl_hpc.segmentation.placement import Placement, cut_window

from .helpers import settings

SIDE = 96
TRUNK = UNetConfig()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """A ramp along x whose mask is the left or right half, and an image of noise that is smaller than a window."""
    path = tmp_path_factory.mktemp("a") / "a.h5"
    ramp = np.tile(np.arange(SIDE, dtype=np.uint8) * 2, (SIDE, 1))
    mask = (np.arange(SIDE) >= SIDE // 2).astype(np.uint8)[None].repeat(SIDE, 0)
    with ShardWriter(path, [Collection("a", ("left", "right"))]) as writer:
        writer.add(ramp, mask=mask, id="a/ramp", dataset="a", split="train")
        noise = np.random.default_rng(0).integers(0, 255, (24, 40)).astype(np.uint8)
        writer.add(noise, mask=(noise > 127).astype(np.uint8), id="a/small", dataset="a", split="train")
    return Archive(path)


def cut(
    archive: Archive,
    placement: Placement,
    size: tuple[int, int] = (32, 32),
    name: str = "a/ramp",
    seed: int = 0,
):
    rng = np.random.default_rng(seed)
    return cut_window(archive, archive.find(name), placement, size, TRUNK, rng)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("angle", [0.3, 1.1, 2.9])
@pytest.mark.parametrize("flip", [False, True])
def test_levels_change_along_the_rotated_axis_at_the_scaled_rate(
    archive: Archive, scale: float, angle: float, flip: bool
) -> None:
    image, _ = cut(archive, Placement(flip, angle * 2 / math.pi, scale))
    inner = image[0, 8:-8, 8:-8].astype(float)
    down, across = (np.diff(inner, axis=axis).mean() for axis in (0, 1))
    step = 2 / 255 / scale
    assert down == pytest.approx(step * math.sin(angle), abs=0.02 * step)
    assert across == pytest.approx(step * math.cos(angle), abs=0.02 * step)


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_goes_with_the_image(archive: Archive, seed: int) -> None:
    image, mask = cut(archive, Placement(bool(seed % 2), 0.37 + seed, 0.8 + 0.1 * seed), seed=seed)
    border = (SIDE - 1) / 255  # the level between the two halves
    sure = np.abs(image[0] - border) > 0.02
    np.testing.assert_array_equal(mask[sure], (image[0] > border)[sure])
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}


def test_a_window_that_leaves_a_small_image_mirrors_it_with_its_mask(archive: Archive) -> None:
    image, mask = cut(archive, Placement(False, 0.5, 1.6), (48, 64), "a/small")
    assert image.shape == (1, 48, 64)
    assert mask.shape == (48, 64)
    assert np.isfinite(image).all()
    # Bilinear levels near a threshold may fall on either side of it.
    agree = (image[0] > 127 / 255) == (mask == 1)
    assert agree.mean() > 0.8


def test_whole_quarter_turns_copy_pixels(archive: Archive) -> None:
    plain, _ = cut(archive, Placement(False, 0, 1.0))
    turned, _ = cut(archive, Placement(True, 3, 1.0))
    levels = {round(float(v) * 255) for v in np.unique(archive.read_unit(0))}
    for window in (plain, turned):
        assert {round(float(v) * 255) for v in np.unique(window)} <= levels
    assert np.ptp(plain[0], axis=0).max() == 0, "the ramp runs along x"
    assert np.ptp(turned[0], axis=1).max() == 0, "a quarter turn makes it run along y"


def test_reducing_averages_what_enlarging_does_not(archive: Archive) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (SIDE, SIDE // 2))
    path = archive.path.with_name("stripes.h5")
    with ShardWriter(path, [Collection("a", ("x", "y"))]) as writer:
        writer.add(stripes, id="a/stripes", dataset="a", split="train")
    fine = Archive(path)
    reduced, _ = cut(fine, Placement(False, 0.0, 0.6), name="a/stripes")
    enlarged, _ = cut(fine, Placement(False, 0.0, 1.6), name="a/stripes")
    assert float(reduced.std()) < 0.7 * float(enlarged.std())


def test_draws_cover_the_configured_ranges(tmp_path: Path) -> None:
    config = settings(tmp_path / "a.h5", tmp_path / "run", any_angle=True, scale=[0.5, 2.0])
    found = [Placement.draw(config, np.random.default_rng(seed)) for seed in range(400)]
    scales, turns = np.array([p.scale for p in found]), np.array([p.turns for p in found])
    assert 0.5 <= scales.min() < 0.55
    assert 1.8 < scales.max() <= 2.0
    assert abs(np.log(scales).mean()) < 0.1, "as often reduced as enlarged"
    assert 0 <= turns.min() < 0.1
    assert 3.9 < turns.max() < 4
    assert {p.flip for p in found} == {False, True}
    assert not any(p.copies for p in found)
    plain = settings(tmp_path / "a.h5", tmp_path / "run")
    assert all(Placement.draw(plain, np.random.default_rng(seed)).copies for seed in range(20))

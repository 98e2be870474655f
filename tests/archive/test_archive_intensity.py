"""Intensity ranges of images in which almost all pixels are equal, or some are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan

from .archives import pixels


def _packed(folder: Path, image: np.ndarray, **how: str) -> tuple[Archive, tuple[str, ...]]:
    path = folder / "x" / "a.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, **how)
    out = folder / "a.h5"
    out.unlink(missing_ok=True)
    result = build(plan([path.parent]), out, BuildOptions())
    return Archive(out), result.warnings


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int16"])
@pytest.mark.parametrize("common", [0, 30000])
def test_a_few_pixels_that_differ_are_not_lost(tmp_path: Path, dtype: str, common: int) -> None:
    image = np.full((100, 100), common, dtype)
    image[3, :4] = (500, 1000, 1500, 20000)
    archive, warnings = _packed(tmp_path, image)
    record = archive.records[0]
    assert (record.low, record.high) == (min(common, 500), max(common, 20000))
    assert len(np.unique(archive.read_unit(0))) == 5
    [warning] = warnings
    assert warning.startswith("x/a: ")


def test_a_constant_image_is_constant(tmp_path: Path) -> None:
    archive, warnings = _packed(tmp_path, np.full((20, 30), 700, np.uint16))
    assert (archive.records[0].low, archive.records[0].high) == (700, 700)
    [warning] = warnings
    assert "700" in warning


@pytest.mark.parametrize("fill", [-3.4028235e38, 1e38, -9999.0, -32768.0])
@pytest.mark.parametrize("share", [0.02, 0.6])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_missing_pixels_do_not_decide_the_range(tmp_path: Path, fill: float, share: float) -> None:
    image = np.random.default_rng(0).uniform(10, 20, (100, 100)).astype(np.float32)
    missing = np.random.default_rng(1).uniform(size=image.shape) < share
    low, high = np.percentile(image[~missing], (0.5, 99.5))
    archive, warnings = _packed(tmp_path, np.where(missing, np.float32(fill), image))
    record = archive.records[0]
    assert (record.low, record.high) == pytest.approx((low, high))
    assert 0.4 < archive.read_unit(0)[0][~missing].mean() < 0.6
    [warning] = warnings
    assert f"{fill:g}" in warning


def test_float64_fill_is_missing_and_other_large_values_are_refused(tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(10, 20, (50, 50))
    image[:10] = -np.finfo(np.float64).max
    archive, _ = _packed(tmp_path, image)
    assert 9 < archive.records[0].low < archive.records[0].high < 21
    tifffile.imwrite(tmp_path / "x" / "b.tif", image * 0 + 1e300)
    [skipped] = build(plan([tmp_path / "x"]), tmp_path / "b.h5", BuildOptions()).skipped
    assert "float64" in skipped.reason


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int8", "uint16", "uint8"])
def test_white_is_zero_is_inverted_in_every_type(tmp_path: Path, dtype: str) -> None:
    image = pixels((40, 50), "uint8", seed=2) % 100
    black, _ = _packed(tmp_path, image.astype(dtype))
    expected = black.read_unit(0)
    top = 0 if dtype.startswith(("f", "i")) else np.iinfo(dtype).max
    inverted = (top - image.astype(np.int64)).astype(dtype)
    white, _ = _packed(tmp_path, inverted, photometric="miniswhite")
    np.testing.assert_allclose(white.read_unit(0), expected, atol=1e-5)


@pytest.mark.parametrize(
    "image",
    [np.zeros((20, 30), np.uint8), np.full((20, 30), np.nan, np.float32), np.full((20, 30), 0.5, np.float32)],
)
def test_an_empty_image_is_told(tmp_path: Path, image: np.ndarray) -> None:
    _, [warning] = _packed(tmp_path, image)
    assert warning.startswith("x/a: ")


def test_types_are_counted_without_colour(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for name, shape, dtype in (("a", (9, 8), "uint8"), ("b", (9, 8, 3), "uint8"), ("c", (9, 8), "uint16")):
        tifffile.imwrite(folder / f"{name}.tif", pixels(shape, dtype))
    types, colour = build(plan([folder]), tmp_path / "a.h5", BuildOptions()).warnings
    assert "1 of 16 bits, 2 of 8 bits" in types
    assert "1 of its images are in colour and 2 are grey" in colour

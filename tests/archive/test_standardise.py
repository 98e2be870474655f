"""Standardised images: statistics of the whole image, the same for its windows, whatever its exposure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pscl_hpc.archive import Archive, Collection, ShardWriter, reader
from pscl_hpc.archive.windows import read_window


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    random = np.random.default_rng(0)
    image = np.clip(random.normal(120, 20, (70, 50)) + np.linspace(-40, 40, 50), 0, 255).astype(np.uint8)
    with ShardWriter(tmp_path / "a.h5", [Collection("a", (), 0, (), ())]) as writer:
        writer.add(image, id="a/0", dataset="a", split="train")
        writer.add((image // 2 + 20).astype(np.uint8), id="a/1", dataset="a", split="train")
        writer.add(np.full((33, 40), 77, np.uint8), id="a/2", dataset="a", split="train")
    return Archive(tmp_path / "a.h5")


def test_the_whole_image_has_the_promised_mean_and_deviation(archive: Archive) -> None:
    plain, found = archive.read_unit(0).astype(float), archive.read_unit(0, standardise=True)
    assert found.dtype == np.float32
    expected = np.clip(0.5 + (plain - plain.mean()) / plain.std() / 6, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_windows_have_the_statistics_of_the_image(archive: Archive) -> None:
    whole = archive.read_unit(0, standardise=True)
    window = (8, 30, 20, 16)
    found, _ = read_window(archive, archive.records[0], window, (20, 16), channels=1, standardise=True)
    np.testing.assert_array_equal(found, whole[:, 8:28, 30:46])
    assert abs(float(found.mean()) - 0.5) > 0.05, "the window differs from the image"


def test_exposure_does_not_matter(archive: Archive) -> None:
    first, second = (archive.read_unit(index, standardise=True) for index in (0, 1))
    assert float(np.abs(archive.read_unit(0) - archive.read_unit(1)).mean()) > 0.1
    # Halved levels are rounded.
    assert float(np.abs(first - second).mean()) < 0.005


def test_an_image_of_one_level_is_grey(archive: Archive) -> None:
    assert np.all(archive.read_unit(2, channels=3, standardise=True) == 0.5)


def test_bands_give_the_statistics_of_the_whole(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = archive.statistics(0)
    monkeypatch.setattr(reader, "_BAND", 16)
    archive._statistics.clear()
    np.testing.assert_allclose(archive.statistics(0), whole, rtol=1e-6)

"""Building, reading and checking archives of real micrographs, where they are available."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.check import check
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.archive.options import AUTO_CROP


@pytest.mark.parametrize("dataset", ["nasa_super", "uhcs_steel", "metaldam"])
def test_a_real_collection_is_packed_completely(real_data: Path, tmp_path: Path, dataset: str) -> None:
    folder = real_data / dataset
    if not folder.is_dir():
        pytest.skip(f"no {dataset}")
    # Automatic cropping must not touch images that have no information bar.
    result = build(plan([folder]), tmp_path / "a.h5", BuildOptions(crop_bottom=AUTO_CROP))
    assert not result.skipped
    assert not result.cropped
    archive = Archive(tmp_path / "a.h5")
    assert len(archive) == len(list((folder / "img").iterdir()))
    for record in archive.records:
        stem = record.id.partition("/")[2]
        with Image.open(folder / "img" / f"{stem}.png") as image:
            np.testing.assert_array_equal(archive.read_image(record.index)[:, :, 0], np.asarray(image))
        with Image.open(folder / "gt" / f"{stem}.png") as mask:
            np.testing.assert_array_equal(archive.read_mask(record.index), np.asarray(mask))
    assert check(archive) == []
    assert len(archive.collections[dataset].references) == 5


def test_turned_copies_of_real_images_are_found(real_data: Path, tmp_path: Path) -> None:
    """The public copy of this data set has every image in four orientations; here three are made."""
    folder = real_data / "neu_seg_unique" / "img"
    if not folder.is_dir():
        pytest.skip("no neu_seg_unique")
    (tmp_path / "x").mkdir()
    paths = sorted(folder.iterdir())[::12]
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            image.save(tmp_path / "x" / f"{number:03d}.jpg", quality=90)
            if number < 12:
                turned = image.transpose(list(Image.Transpose)[number % 7])
                turned.save(tmp_path / "x" / f"{number:03d}-turned.jpg", quality=85)
    build(plan([tmp_path / "x"]), tmp_path / "a.h5", BuildOptions())
    pairs = {finding.images for finding in check(Archive(tmp_path / "a.h5"))}
    assert pairs == {(f"x/{number:03d}", f"x/{number:03d}-turned") for number in range(12)}

"""The orientation tag of a TIFF is applied like that of a JPEG; masks are not turned."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest import page as module
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError

from .archives import Pixels, labels, pixels


def turned_by(image: Pixels, orientation: int) -> Pixels:
    """The rows of a file whose upright image is ``image``, (h, w) or (h, w, c)."""
    across = image.swapaxes(0, 1)
    turned = {
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: across,
        6: np.rot90(image),
        7: across[::-1, ::-1],
        8: np.rot90(image, 3),
    }.get(orientation, image)
    return np.ascontiguousarray(turned)


def save(path: Path | io.BytesIO, rows: Pixels, orientation: int, **layout: object) -> None:
    tag = (274, "H", 1, orientation, True)
    kind = "rgb" if rows.ndim == 3 else "minisblack"
    tifffile.imwrite(path, rows, photometric=kind, extratags=[tag], **layout)


@pytest.mark.parametrize("layout", [{"tile": (64, 48)}, {"rowsperstrip": 100}, {}], ids=str)
@pytest.mark.parametrize("orientation", [*range(10), 60_000])
def test_a_tiff_is_upright_as_viewers_show_it(tmp_path: Path, orientation: int, layout: dict) -> None:
    """More than one strip of 256 rows in both directions, with bands that do not divide them."""
    image = pixels((300, 270, 3), "uint16")
    save(tmp_path / "a.tif", turned_by(image, orientation), orientation, **layout)
    with open_pages(tmp_path / "a.tif") as (page,):
        assert (page.height, page.width) == (300, 270)
        np.testing.assert_array_equal(np.concatenate(list(page.strips())), image)
        np.testing.assert_array_equal(page.rows(299, 300), image[299:])
    if orientation in range(1, 9):
        small, buffer = image[:20, :30].astype(np.uint8), io.BytesIO()
        save(buffer, turned_by(small, orientation), orientation)
        with Image.open(buffer) as shown:
            np.testing.assert_array_equal(np.asarray(shown), small)


def test_a_rotated_page_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_WHOLE", 20 * 30)
    for orientation, width in ((4, 31), (6, 30)):
        save(tmp_path / "a.tif", pixels((20, width)), orientation)
        with open_pages(tmp_path / "a.tif") as (page,):
            assert {page.height, page.width} == {20, width}
    save(tmp_path / "a.tif", pixels((20, 31)), 6)
    with pytest.raises(Unreadable, match=r"\(6\).*31 x 20"), open_pages(tmp_path / "a.tif"):
        pass


def test_masks_and_cropping_apply_to_the_upright_image(tmp_path: Path) -> None:
    """Annotation tools write what they show: a tag that was copied from the image is ignored."""
    image, mask = pixels((40, 30)), labels((40, 30))
    for name in ("img", "gt"):
        (tmp_path / "steel" / name).mkdir(parents=True)
    save(tmp_path / "steel" / "img" / "a.tif", turned_by(image, 6), 6)
    save(tmp_path / "steel" / "gt" / "a.tif", mask, 3)
    found = plan([tmp_path / "steel"], classes=["m", "n", "o"])
    assert not build(found, tmp_path / "a.h5", BuildOptions(crop_bottom=5)).skipped
    with Archive(tmp_path / "a.h5") as archive:
        np.testing.assert_array_equal(archive.read_image(0)[:, :, 0], image[:35])
        np.testing.assert_array_equal(archive.read_mask(0), mask[:35])
    Image.fromarray(turned_by(mask, 6)).save(tmp_path / "steel" / "gt" / "a.tif")
    with pytest.raises(UserError, match="orientation"):
        build(plan([tmp_path / "steel"], classes=["m", "n", "o"]), tmp_path / "b.h5", BuildOptions())

"""The scale in tags and in files beside an image, in the forms that microscopes write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tifffile

from pscl_hpc.archive.ingest.images import open_pages

from .archives import picture, pixels

TESCAN = "[MAIN]\r\nDevice=MIRA3\r\nMagnification=5000.0\r\nPixelSizeX=2.1e-8\r\nPixelSizeY=2.1e-8\r\n[SEM]\r\nHV=15000\r\n"
JEOL = "$CM_FORMAT JEOL\r\n$CM_MAG 5000\r\n$$SM_MICRON_BAR 50\r\n$$SM_MICRON_MARKER {marker}\r\n"
HITACHI = "[SemImageFile]\r\nInstructName=SU8000\r\nMagnification=5000\r\nPixelSize=21.0\r\n"
VELOX = (
    '<Metadata xmlns:nil="http://schemas.fei.com/Metadata/v1/2013/07"><BinaryResult><PixelSize><X unit="m">2.1e-08</X>'
    '<Y unit="m">2.1e-08</Y></PixelSize></BinaryResult></Metadata>'
)
PHENOM = "<?xml version='1.0'?><FeiImage><pixelWidth unit='nm'>21</pixelWidth></FeiImage>"
GATAN = [
    (65003, "s", 0, "nm", True),
    (65004, "s", 0, "nm", True),
    (65009, "d", 1, 21.0, True),
    (65010, "d", 1, 21.0, True),
]


def read(path: Path) -> tuple[float | None, float | None]:
    with open_pages(path) as (page,):
        return page.um_per_pixel, page.magnification


@pytest.mark.parametrize(
    ("tags", "magnification"),
    [
        ([(50431, "B", len(TESCAN), TESCAN.encode(), True)], 5000),
        ([(50431, "s", 0, TESCAN, True)], 5000),
        ([(34683, "s", 0, VELOX, True)], None),
        ([(270, "s", 0, PHENOM, True)], None),
        (GATAN, None),
    ],
    ids=["tescan bytes", "tescan text", "fei", "phenom", "gatan"],
)
def test_tags(tmp_path: Path, tags: list[Any], magnification: float | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels((6, 8)), extratags=tags, metadata=None)
    assert read(tmp_path / "a.tif") == (pytest.approx(0.021), magnification)


@pytest.mark.parametrize(
    "tags",
    [
        [(50431, "s", 0, TESCAN.replace("PixelSizeY=2.1", "PixelSizeY=3"), True)],
        [(34683, "s", 0, VELOX.replace('unit="m"', 'unit="px"'), True)],
        [(34683, "s", 0, VELOX.replace("<Metadata", "<!DOCTYPE a [<!ENTITY b 'c'>]><Metadata", 1), True)],
        [(34683, "s", 0, "<broken", True)],
        [*GATAN[:3], (65010, "d", 1, 30.0, True)],
        [(65003, "s", 0, "px", True), (65004, "s", 0, "px", True), *GATAN[2:]],
    ],
)
def test_tags_without_a_clear_pixel_size(tmp_path: Path, tags: list[Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels((6, 8)), extratags=tags, metadata=None)
    assert read(tmp_path / "a.tif")[0] is None


@pytest.mark.parametrize("image", ["a.tif", "a.jpg", "a.png"])
@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("a.txt", JEOL.format(marker="1.05um"), "ascii"),
        ("a.TXT", JEOL.format(marker="1050nm"), "ascii"),
        ("a.txt", JEOL.format(marker="1.05\u00b5m"), "cp1252"),
        ("a.txt", JEOL.format(marker="1.05\u03bcm"), "cp932"),
        ("a.txt", HITACHI, "utf-8"),
        ("a.txt", HITACHI, "utf-16"),
        ("a.hdr", TESCAN, "ascii"),
    ],
)
def test_a_file_beside_the_image(tmp_path: Path, image: str, name: str, text: str, encoding: str) -> None:
    picture(tmp_path / image)
    (tmp_path / name).write_text(text, encoding=encoding)
    assert read(tmp_path / image) == (pytest.approx(0.021), 5000)
    (tmp_path / name).write_text("notes of the operator\n")
    assert read(tmp_path / image) == (None, None)

"""Micrometres per pixel from OME-XML, which is not trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.ingest.sources import plan

from .archives import pixels

XML = """<?xml version="1.0" encoding="UTF-8"?>{before}
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{images}</OME>"""
SQUARE = 'PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.25" PhysicalSizeYUnit="\u00b5m"'


def image(sizes: str) -> str:
    return f'<Image ID="Image:0"><Pixels ID="Pixels:0" SizeX="8" SizeY="6" {sizes}/></Image>'


def scale(path: Path, text: str) -> float | None:
    tifffile.imwrite(path, pixels((6, 8)), description=text.encode(), metadata=None)
    with open_pages(path) as (page,):
        return page.um_per_pixel


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (SQUARE, 0.25),
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.5"', 0.5),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="\u03bcm"', 0.5),
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.50001"', 0.5),
        ('PhysicalSizeX="30" PhysicalSizeXUnit="\u00c5"', 0.003),
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.6"', None),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="nm" PhysicalSizeY="0.5"', None),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"', None),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="reference frame"', None),
        ('PhysicalSizeX="0"', None),
        ('PhysicalSizeX="-0.1"', None),
        ('PhysicalSizeX="nan"', None),
        ('PhysicalSizeX="INF"', None),
        ('PhysicalSizeX="wide"', None),
        ("", None),
    ],
)
def test_the_size_of_a_pixel(tmp_path: Path, sizes: str, expected: float | None) -> None:
    found = scale(tmp_path / "a.ome.tif", XML.format(before="", images=image(sizes)))
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_scale_reaches_the_archive(tmp_path: Path) -> None:
    """A stack written by tifffile is packed with its scale."""
    sizes = {"PhysicalSizeX": 21, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 21, "PhysicalSizeYUnit": "nm"}
    (tmp_path / "x").mkdir()
    tifffile.imwrite(
        tmp_path / "x" / "a.ome.tif",
        pixels((3, 6, 8)),
        photometric="minisblack",
        metadata={"axes": "ZYX", **sizes},
    )
    build(plan([tmp_path / "x"]), tmp_path / "a.h5", BuildOptions())
    assert [record.um_per_pixel for record in Archive(tmp_path / "a.h5").records] == [
        pytest.approx(0.021)
    ] * 3


def test_images_of_several_sizes_have_none(tmp_path: Path) -> None:
    two = [image(SQUARE), image('PhysicalSizeX="0.5"')]
    assert scale(tmp_path / "a.tif", XML.format(before="", images="".join(two))) is None
    assert scale(tmp_path / "b.tif", XML.format(before="", images=two[0] * 2)) == 0.25
    assert scale(tmp_path / "c.tif", XML.format(before="", images=two[0] + image(""))) is None


@pytest.mark.parametrize(
    "before",
    [
        '<!DOCTYPE OME [<!ENTITY a "0.25">]>',
        '<!DOCTYPE OME SYSTEM "file:///etc/hostname">',
        "<!DOCTYPE OME>",
    ],
)
def test_a_document_type_is_not_read(tmp_path: Path, before: str) -> None:
    assert scale(tmp_path / "a.tif", XML.format(before=before, images=image(SQUARE))) is None


@pytest.mark.parametrize(
    "torn", ['<OME><Image><Pixels PhysicalSizeX="1"/></OME>', "&a;</OME>", "OME>", "\x01<OME></OME>"]
)
def test_damaged_xml_is_ignored(tmp_path: Path, torn: str) -> None:
    assert scale(tmp_path / "a.tif", torn) is None

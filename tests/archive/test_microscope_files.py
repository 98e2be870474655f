"""Images of DigitalMicrograph and TIA."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan

pytest.importorskip("rsciio")


def write_ser(path: Path, image: np.ndarray, metres: float) -> None:
    """A TIA series of one image, little-endian, by the description of its format (ES Vision)."""
    types = {np.dtype("uint16"): 2, np.dtype("int32"): 6}
    height, width = image.shape
    header = struct.pack("<HHH", 0x4949, 0x0197, 0x0210)
    header += struct.pack(
        "<IIIIII", 0x4122, 0x4152, 1, 1, 0, 1
    )  # images; time stamps; elements; array at; dimensions
    dimension = struct.pack("<IddII", 1, 0.0, 1.0, 0, 6) + b"Number" + struct.pack("<I", 0)
    offset_array = len(header) + len(dimension)
    header = header[:22] + struct.pack("<I", offset_array) + header[26:]
    data_at = offset_array + 8
    element = struct.pack("<ddIddIHII", 0.0, metres, 0, 0.0, metres, 0, types[image.dtype], width, height)
    content = element + image[::-1].tobytes()
    tags_at = data_at + len(content)
    tag = struct.pack("<HHI", 0x4152, 0, 0)
    path.write_bytes(header + dimension + struct.pack("<II", data_at, tags_at) + content + tag)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_a_tia_series(tmp_path: Path, dtype: str) -> None:
    image = np.random.default_rng(0).integers(0, 5000, (20, 30)).astype(dtype)
    (tmp_path / "x").mkdir()
    write_ser(tmp_path / "x" / "a_1.ser", image, 2.1e-8)
    (tmp_path / "x" / "a.emi").write_bytes(b"the header of a_1.ser")
    result = build(plan([tmp_path / "x"]), tmp_path / "a.h5", BuildOptions())
    assert not result.skipped
    archive = Archive(tmp_path / "a.h5")
    assert archive.records[0].um_per_pixel == pytest.approx(0.021)
    np.testing.assert_array_equal(archive.read_image(0)[:, :, 0], image)
    assert archive.records[0].dtype == "uint16"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write_ser(tmp_path / "x" / "a_1.ser", np.ones((20, 30), np.uint16), 2.1e-8)
    (tmp_path / "x" / "b.dm3").write_bytes(b"\0" * 200)
    (tmp_path / "x" / "c.emi").write_bytes(b"\0" * 200)
    result = build(plan([tmp_path / "x"]), tmp_path / "a.h5", BuildOptions())
    assert {name for name in ("b.dm3", "c.emi") for item in result.skipped if name in str(item)} == {
        "b.dm3",
        "c.emi",
    }

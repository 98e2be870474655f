"""Writing: invalid images are refused and leave no trace, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive.format import unite
from pscl_hpc.archive.write_errors import WriteError
from tests.helpers import PATIENCE_S

from .archives import PLAIN, STEEL, labels, pixels, pool_of


def test_an_exception_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with ShardWriter(path, [PLAIN]) as writer:
        writer.add(pixels((4, 4)), id="plain/old", dataset="plain")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="plain/new"):
        _write_twice(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.h5"]


def _write_twice(path: Path) -> None:
    with ShardWriter(path, [PLAIN]) as writer:
        for _ in range(2):
            writer.add(pixels((4, 4)), id="plain/new", dataset="plain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "plain/a"}, "plain/a"),
        ({"id": "steel/"}, "steel/"),
        ({"id": "steel/first"}, "steel/first"),
        ({"dataset": "stel", "id": "stel/a"}, "'stel'"),
        ({"mask": np.zeros((3, 4), np.uint8)}, "3 x 4.*4 x 4"),
        ({"mask": np.full((4, 4), 3, np.uint8)}, "3 .*steel.*0 to 2"),
        ({"mask": np.full((4, 4), -1, np.int32)}, "-1"),
        ({"mask": np.zeros((4, 4))}, "float64"),
        ({"image": np.zeros((4, 4), np.int32)}, "int32"),
        ({"image": np.zeros((4, 4, 2), np.uint8)}, "4 x 4 x 2"),
        ({"image": np.zeros((0, 4), np.uint8)}, "0 x 4"),
        ({"image": np.zeros(4, np.uint8)}, r"\(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_rest_is_written(
    tmp_path: Path, change: dict, message: str
) -> None:
    fields = {"image": pixels((4, 4)), "id": "steel/a", "dataset": "steel", "mask": None} | change
    with ShardWriter(tmp_path / "a.h5", [STEEL]) as writer:
        writer.add(pixels((4, 4)), id="steel/first", dataset="steel")
        with pytest.raises(ValueError, match=message):
            writer.add(fields.pop("image"), **fields)
        writer.add(pixels((4, 4), seed=2), id="steel/last", dataset="steel")
    archive = Archive(tmp_path / "a.h5")
    assert [record.id for record in archive.records] == ["steel/first", "steel/last"]
    np.testing.assert_array_equal(archive.read_image(1)[:, :, 0], pixels((4, 4), seed=2))


def test_a_strip_source_that_fails_leaves_the_shard_as_it_was(tmp_path: Path) -> None:
    def torn():
        yield pixels((256, 300, 1))
        raise OSError("disk")

    with ShardWriter(tmp_path / "a.h5", [PLAIN]) as writer:
        with pytest.raises(OSError, match="disk"):
            writer.add_strips(torn(), shape=(600, 300, 1), dtype="uint8", id="plain/torn", dataset="plain")
        with pytest.raises(ValueError, match="344 of 600"):
            writer.add_strips(
                [pixels((256, 300, 1))], shape=(600, 300, 1), dtype="uint8", id="plain/short", dataset="plain"
            )
        writer.add(pixels((300, 300)), id="plain/whole", dataset="plain")
    archive = Archive(tmp_path / "a.h5")
    assert len(archive) == 1
    assert pool_of(archive, 0).stored_bytes == 300 * 300
    np.testing.assert_array_equal(archive.read_image(0)[:, :, 0], pixels((300, 300)))


FULL = """
import resource, sys
from pathlib import Path
from pscl_hpc.archive.options import IngestOptions
from pscl_hpc.archive.single_file import temporary_archive
from pscl_hpc.cli.main import main
from pscl_hpc.errors import UserError
what, folder, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if what == "synth":
    main(["archive", "synth", "--out", str(folder / "s.h5"), "--images", "3", "--family", "grains", "--json"])
else:
    try:
        with temporary_archive(folder / "a.png", folder, IngestOptions()):
            pass
    except UserError as error:
        print("error:", error, file=sys.stderr)
"""


@pytest.mark.parametrize("what", ["synth", "single file"])
@pytest.mark.parametrize("limit", [0, 1000, 60_000])
def test_a_full_disk_is_one_error_line(tmp_path: Path, what: str, limit: int) -> None:
    """HDF5 reports it at once, or by a RuntimeError when the file is closed."""
    Image.fromarray(pixels((300, 300))).save(tmp_path / "a.png")
    (tmp_path / "full.py").write_text(FULL)
    command = [sys.executable, tmp_path / "full.py", what, tmp_path, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: {tmp_path}")
    assert "File too large" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "full.py"]


def test_a_full_disk_does_not_hide_the_exception_of_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may also be full when the block ends with another exception."""
    close = h5py.File.close

    def full(file: h5py.File) -> None:
        close(file)
        raise RuntimeError(
            "Can't decrement id ref count (errno = 28, error message = 'No space left on device')"
        )

    monkeypatch.setattr(h5py.File, "close", full)
    with pytest.raises(ValueError, match="plain/new"):
        _write_twice(tmp_path / "a.h5")
    message = r"a\.h5.*No space left on device"
    with pytest.raises(WriteError, match=message), ShardWriter(tmp_path / "a.h5", [PLAIN]) as writer:
        writer.add(pixels((4, 4)), id="plain/a", dataset="plain")
    assert not [*tmp_path.iterdir()]


def test_truncate_drops_the_last_images(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.h5", [STEEL]) as writer:
        for number in range(4):
            mask = labels((20, 300), number)
            writer.add(pixels((20, 300), seed=number), id=f"steel/{number}", dataset="steel", mask=mask)
        writer.truncate(1)
        writer.add(pixels((30, 30), seed=9), id="steel/3", dataset="steel", mask=labels((30, 30), 9))
    archive = Archive(tmp_path / "a.h5")
    assert [record.id for record in archive.records] == ["steel/0", "steel/3"]
    assert pool_of(archive, 0).stored_bytes == 20 * 300 + 30 * 30
    np.testing.assert_array_equal(archive.read_mask(1), labels((30, 30), 9))
    np.testing.assert_array_equal(archive.read_mask(0), labels((20, 300), 0))


def test_uint16_percentiles_are_exact_over_strips(tmp_path: Path) -> None:
    image = np.random.default_rng(0).gamma(2, 3000, (700, 300)).astype(np.uint16)
    real = np.random.default_rng(0).normal(0, 1, (700, 300)).astype(np.float32)
    with ShardWriter(tmp_path / "a.h5", [PLAIN], percentiles=(1, 98)) as writer:
        writer.add(image, id="plain/a", dataset="plain")
        writer.add(real, id="plain/b", dataset="plain")
    records = Archive(tmp_path / "a.h5").records
    assert (records[0].low, records[0].high) == pytest.approx(tuple(np.percentile(image, (1, 98))))
    assert (records[1].low, records[1].high) == pytest.approx(tuple(np.percentile(real, (1, 98))))


def test_a_large_float_image_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    from pscl_hpc.archive import intensity

    monkeypatch.setattr(intensity, "SAMPLE_PIXELS", 10_000)
    ramp = np.linspace(0, 1, 700, dtype=np.float32)[:, None, None] * np.ones((1, 500, 1), np.float32)
    estimator = intensity.RangeEstimator("float32", 700, 500, (10, 90))
    for top in range(0, 700, 256):
        estimator.add(ramp[top : top + 256])
    assert estimator.range() == pytest.approx((0.1, 0.9), abs=0.02)
    sampled = sum(part.size for part in estimator._samples)
    assert 5_000 < sampled <= 10_000


def test_collections_unite_or_contradict() -> None:
    bare = Collection("steel", references=("steel/b",))
    assert unite(bare, STEEL).references == ("steel/b", "steel/a")
    assert unite(STEEL, bare).classes == STEEL.classes
    with pytest.raises(ValueError, match="steel"):
        unite(STEEL, Collection("steel", ("matrix", "pore")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a/b"},
        {"background": 3},
        {"ignore_classes": (3,)},
        {"classes": tuple(map(str, range(256)))},
    ],
)
def test_a_collection_that_contradicts_itself(wrong: dict) -> None:
    with pytest.raises(ValueError, match="collection"):
        Collection(**({"name": "x", "classes": ("a", "b", "c")} | wrong))

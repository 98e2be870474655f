"""Building is deterministic and additive, and never damages an old archive."""

from __future__ import annotations

import json
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.archive.options import AUTO_CROP
from pscl_hpc.errors import UserError

from .archives import labels, make_sources, packed, pixels


def test_a_build_holds_what_the_files_hold(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 5)
    result = packed(sources, tmp_path / "a.h5")
    assert (result.added, result.unchanged, result.skipped) == (5, 0, ())
    archive = Archive(tmp_path / "a.h5")
    for number, record in enumerate(archive.records):
        np.testing.assert_array_equal(archive.read_image(number)[:, :, 0], pixels((40, 300), seed=number))
        assert record.has_mask == bool(number % 2)
        if record.has_mask:
            np.testing.assert_array_equal(archive.read_mask(number), labels((40, 300), number))
        assert len(record.sha256) == 64
        assert record.source == f"steel/img/{number:04d}.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "steel"]


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    make_sources(tmp_path / "x" / "steel")
    make_sources(tmp_path / "y" / "steel")
    for name in "xy":
        time.sleep(1.05 if name == "y" else 0)  # HDF5 keeps times by the second
        packed(tmp_path / name / "steel", tmp_path / f"{name}.h5")
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


@pytest.mark.parametrize("shard_bytes", [None, 30_000])
def test_adding_equals_building_at_once(tmp_path: Path, shard_bytes: int | None) -> None:
    whole = tmp_path / ("whole" if shard_bytes else "whole.h5")
    grown = tmp_path / ("grown" if shard_bytes else "grown.h5")
    make_sources(tmp_path / "steel", 4, first=6)
    packed(tmp_path / "steel", grown, shard_bytes=shard_bytes)
    kept = {path.name: path.read_bytes() for path in grown.glob("shard-*")} if shard_bytes else {}
    make_sources(tmp_path / "steel", 10)
    result = packed(tmp_path / "steel", grown, shard_bytes=shard_bytes)
    assert (result.added, result.unchanged) == (6, 4)
    packed(tmp_path / "steel", whole, shard_bytes=shard_bytes)
    assert Archive(grown).fingerprint == Archive(whole).fingerprint
    assert [record.id for record in Archive(grown).records] == [
        record.id for record in Archive(whole).records
    ]
    for name, content in kept.items():
        assert (grown / name).read_bytes() == content
    again = packed(tmp_path / "steel", grown)
    assert (again.added, again.unchanged) == (0, 10)


def test_nothing_new_leaves_the_file_alone(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 3)
    packed(sources, tmp_path / "a.h5")
    before = (tmp_path / "a.h5").stat()
    packed(sources, tmp_path / "a.h5")
    after = (tmp_path / "a.h5").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda folder: Image.fromarray(pixels((40, 300), seed=99)).save(folder / "img" / "0001.png"),
            "pixels",
        ),
        (
            lambda folder: Image.fromarray(labels((40, 300), 99)).save(folder / "gt" / "0001.png"),
            "mask",
        ),
        (
            lambda folder: (folder / "splits.json").write_text(
                json.dumps({"classes": ["a", "b", "c"], "references": ["0001.png"], "train": ["0001.png"]})
            ),
            "metadata",
        ),
    ],
)
def test_an_image_that_changed_is_named_and_not_replaced(tmp_path: Path, change, reason: str) -> None:
    sources = make_sources(tmp_path / "steel", 3)
    packed(sources, tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    change(sources)
    result = packed(sources, tmp_path / "a.h5")
    assert [item.path for item in result.skipped] == ["steel/img/0001.png"]
    assert reason in result.skipped[0].reason
    assert (tmp_path / "a.h5").read_bytes() == before


def test_other_classes_under_old_masks_are_refused(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 3)
    packed(sources, tmp_path / "a.h5")
    (sources / "splits.json").write_text(json.dumps({"classes": ["b", "a", "c"]}))
    with pytest.raises(UserError, match="steel"):
        packed(sources, tmp_path / "a.h5")


def test_bad_files_are_named_and_the_rest_is_packed(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 4)
    (sources / "img" / "empty.png").touch()
    (sources / "img" / "0002.png").write_bytes((sources / "img" / "0002.png").read_bytes()[:3000])
    Image.fromarray(labels((40, 299))).save(sources / "gt" / "0003.png")
    result = packed(sources, tmp_path / "a.h5")
    assert result.added == 2
    reasons = {item.path: item.reason for item in result.skipped}
    assert sorted(reasons) == ["steel/img/0002.png", "steel/img/0003.png", "steel/img/empty.png"]
    assert "gt/0003.png" in reasons["steel/img/0003.png"]
    assert [record.id for record in Archive(tmp_path / "a.h5").records] == ["steel/0000", "steel/0001"]


@pytest.mark.parametrize("shard_bytes", [None, 30_000])
def test_a_source_without_images_makes_no_collection(tmp_path: Path, shard_bytes: int | None) -> None:
    make_sources(tmp_path / "top" / "steel", 3)
    (tmp_path / "top" / "README.md").write_text("about")
    out = tmp_path / ("out" if shard_bytes else "out.h5")
    for added in (3, 0):
        sources = plan(sorted((tmp_path / "top").iterdir()))
        result = build(sources, out, BuildOptions(), shard_bytes=shard_bytes)
        assert result.added == added
        assert [item.path for item in result.skipped] == ["top/README.md"]
        assert list(Archive(out).collections) == ["steel"]


def test_nothing_packed_is_an_error_that_leaves_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_text("no")
    with pytest.raises(UserError, match=r"x/a\.png"):
        packed(tmp_path / "x", tmp_path / "a.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_name_like_a_page_number(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for seed, name in enumerate(("a", "a#0", "a#b")):
        Image.fromarray(pixels((9, 9), seed=seed)).save(tmp_path / "x" / f"{name}.png")
    for unchanged in (0, 3):
        assert packed(tmp_path / "x", tmp_path / "a.h5").unchanged == unchanged
        assert [record.id for record in Archive(tmp_path / "a.h5").records] == ["x/a", "x/a#b", "x/a_0"]


def test_pages_are_all_packed_or_none(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with tifffile.TiffWriter(tmp_path / "x" / "good.tif") as writer:
        for seed in range(3):
            writer.write(pixels((20, 30), "uint16", seed=seed), compression="zlib")
    data = (tmp_path / "x" / "good.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "x" / "good.tif") as file:
        offset = file.pages[2].dataoffsets[0] + 100
    (tmp_path / "x" / "torn.tif").write_bytes(data[:offset] + b"\xff" * 40 + data[offset + 40 :])
    result = packed(tmp_path / "x", tmp_path / "a.h5")
    archive = Archive(tmp_path / "a.h5")
    assert [record.id for record in archive.records] == ["x/good#0", "x/good#1", "x/good#2"]
    assert [item.path for item in result.skipped] == ["x/torn.tif"]
    np.testing.assert_array_equal(archive.read_image(2)[:, :, 0], pixels((20, 30), "uint16", seed=2))
    with h5py.File(tmp_path / "a.h5") as file:
        assert len(file["tiles/uint16x1/0"]) == 3  # nothing of the torn file is stored
    assert packed(tmp_path / "x", tmp_path / "a.h5").unchanged == 1


def test_rows_are_cropped_from_image_and_mask(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 2)
    build(plan([sources]), tmp_path / "a.h5", BuildOptions(crop_bottom=15))
    archive = Archive(tmp_path / "a.h5")
    np.testing.assert_array_equal(archive.read_image(1)[:, :, 0], pixels((40, 300), seed=1)[:25])
    np.testing.assert_array_equal(archive.read_mask(1), labels((40, 300), 1)[:25])
    with pytest.raises(UserError, match="40"):
        build(plan([sources]), tmp_path / "b.h5", BuildOptions(crop_bottom=40))


def test_automatic_cropping_leaves_images_without_a_bar(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 2)
    result = build(plan([sources]), tmp_path / "a.h5", BuildOptions(crop_bottom=AUTO_CROP))
    assert not result.cropped
    assert Archive(tmp_path / "a.h5").records[0].height == 40


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_adding_with_another_compression(tmp_path: Path, compression: str) -> None:
    sources = make_sources(tmp_path / "steel", 2)
    build(plan([sources]), tmp_path / "a.h5", BuildOptions(compression="gzip"))
    make_sources(tmp_path / "steel", 5)
    build(plan([sources]), tmp_path / "a.h5", BuildOptions(compression=compression))
    packed(sources, tmp_path / "b.h5")
    archive = Archive(tmp_path / "a.h5")
    assert {shard.pools["uint8x1"].codec.name for shard in archive.shards} == {"gzip", compression}
    assert archive.fingerprint == Archive(tmp_path / "b.h5").fingerprint
    for index in (0, 4):
        np.testing.assert_array_equal(archive.read_image(index)[:, :, 0], pixels((40, 300), seed=index))


def test_outputs_that_are_in_the_way(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 2)
    (tmp_path / "text.h5").write_text("mine")
    with pytest.raises(UserError, match=r"text\.h5"):
        packed(sources, tmp_path / "text.h5")
    assert (tmp_path / "text.h5").read_text() == "mine"
    with pytest.raises(UserError, match=str(sources)):
        packed(sources, sources)
    with pytest.raises(UserError, match=r"text\.h5"):
        packed(sources, tmp_path / "text.h5", shard_bytes=1000)
    with pytest.raises(UserError, match=r"text\.h5/a\.h5"):
        packed(sources, tmp_path / "text.h5" / "a.h5")

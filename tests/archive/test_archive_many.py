"""Archives of many images: what they cost in the file, in memory and when some are added."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from pscl_hpc.archive import Archive, ImageRecord, ShardWriter, packer
from pscl_hpc.archive import parts as parts_module
from pscl_hpc.archive import pool_writer as pool_writer_module
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.archive.manifest import ShardEntry, write_manifest
from pscl_hpc.errors import UserError
from pscl_hpc.files import sha256_of

from .archives import PLAIN, STEEL, labels, make_sources, packed, pixels, write_mixed


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (257, 257), (300, 520)])
def test_no_pixel_is_padded(tmp_path: Path, size: tuple[int, int]) -> None:
    count = 80
    with ShardWriter(tmp_path / "a.h5", [PLAIN]) as writer:
        for number in range(count):
            writer.add(pixels(size, seed=number), id=f"plain/{number:04d}", dataset="plain", source="x.png")
    assert (tmp_path / "a.h5").stat().st_size < 1.1 * count * size[0] * size[1] + 16_000


@pytest.mark.parametrize("block_bytes", [1, 1000, 20_000])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_images_in_several_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, compression: str
) -> None:
    """Also images larger than a block, and images removed again after their block was written."""
    monkeypatch.setattr(pool_writer_module, "BLOCK_BYTES", block_bytes)
    truth = {}
    with ShardWriter(tmp_path / "a.h5", [STEEL], compression) as writer:
        for number in range(12):
            size = (30 + 40 * (number % 3), 300 if number % 4 == 0 else 41)
            if number in (3, 7, 8):
                mark = len(writer)
                for page in range(3):
                    mask = labels(size, page)
                    writer.add(pixels(size, seed=99), id=f"steel/torn{page}", dataset="steel", mask=mask)
                writer.truncate(mark)
            image, mask = pixels((*size, 3), seed=number), labels(size, number)
            writer.add(image, id=f"steel/{number:02d}", dataset="steel", mask=mask)
            truth[f"steel/{number:02d}"] = image, mask
    archive = Archive(tmp_path / "a.h5")
    assert [record.id for record in archive.records] == sorted(truth)
    for record in archive.records:
        np.testing.assert_array_equal(archive.read_image(record.index), truth[record.id][0])
        np.testing.assert_array_equal(archive.read_mask(record.index), truth[record.id][1])


@pytest.mark.parametrize("compression", ["auto", "none", "gzip", "zstd"])
def test_adding_keeps_every_old_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    monkeypatch.setattr(pool_writer_module, "BLOCK_BYTES", 50_000)
    content = write_mixed(tmp_path / "a.h5", compression)
    make_sources(tmp_path / "aaa", 3)  # sorted before the old images
    build(plan([tmp_path / "aaa"]), tmp_path / "a.h5", BuildOptions(compression=compression))
    archive = Archive(tmp_path / "a.h5")
    assert len(archive) == len(content) + 3
    assert [record.id for record in archive.records[:3]] == ["aaa/0000", "aaa/0001", "aaa/0002"]
    for name, (image, mask) in content.items():
        record = archive.find(name)
        np.testing.assert_array_equal(archive.read_image(record.index), image)
        if mask is not None:
            np.testing.assert_array_equal(archive.read_mask(record.index), mask)


def _numbered(path: Path, numbers: Sequence[int]) -> None:
    with ShardWriter(path, [PLAIN]) as writer:
        for number in numbers:
            writer.add(
                pixels((4, 4), seed=number),
                id=f"plain/{number:05d}",
                dataset="plain",
                split=("train", "test", "")[number % 3],
                specimen=f"s{number % 10}",
            )


def test_a_reader_in_another_process_gets_no_index(tmp_path: Path) -> None:
    sizes = []
    for count in (10, 3000):
        _numbered(tmp_path / f"{count}.h5", range(count))
        sizes.append(len(pickle.dumps(Archive(tmp_path / f"{count}.h5"))))
    assert sizes[1] < sizes[0] + 200


def test_selections_are_lazy_and_over_all_shards(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    entries = []
    for shard in range(3):
        path = folder / f"{shard}.h5"
        _numbered(path, range(shard, 60, 3))
        entries.append(ShardEntry(path.name, sha256_of(path), path.stat().st_size, 20))
    write_manifest(folder, entries, "0" * 64)
    archive = pickle.loads(pickle.dumps(Archive(folder)))
    _numbered(tmp_path / "one.h5", range(60))
    one = Archive(tmp_path / "one.h5")
    assert [row.id for row in archive.all_rows()] == [row.id for row in one.all_rows()]
    assert archive.records == one.records
    found = archive.select(splits=["train", ""], without_specimens=["s3", "s6"], without=[one.records[0]])
    expected = [
        record
        for record in one.records
        if record.split != "test" and record.specimen not in ("s3", "s6") and record.index
    ]
    assert list(found) == expected
    assert found[1:4] == expected[1:4]
    assert found[-1] == expected[-1]
    assert isinstance(found[0], ImageRecord)
    assert archive.values("specimen", found) == sorted({record.specimen for record in expected})
    assert archive.values("split") == ["", "test", "train"]
    for number in (0, 31, 59):
        index = archive.find(f"plain/{number:05d}").index
        assert index == number
        np.testing.assert_array_equal(archive.read_image(index)[:, :, 0], pixels((4, 4), seed=number))


def test_an_empty_shard_is_an_archive(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.h5", [PLAIN]):
        pass
    archive = Archive(tmp_path / "a.h5")
    assert len(archive) == 0
    assert list(archive.select(splits=["train"])) == []
    assert list(archive.all_rows()) == []
    with pytest.raises(UserError, match="plain/x"):
        archive.find("plain/x")


def test_a_part_is_finished_after_some_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer, "PART_S", 0.0)
    made = []
    original = parts_module.Parts.add
    monkeypatch.setattr(
        parts_module.Parts, "add", lambda self, path: made.append(path.name) or original(self, path)
    )
    packed(make_sources(tmp_path / "steel", 4), tmp_path / "a.h5")
    assert len(made) == 4
    assert len(Archive(tmp_path / "a.h5")) == 4


def test_a_file_of_the_old_version_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["format"], file.attrs["version"] = "pscl-hpc-archive", 1
    with pytest.raises(UserError, match=r"a\.h5 has archive version 1.*build it again"):
        Archive(tmp_path / "a.h5")


@pytest.mark.parametrize("digest", ["x", "AB" * 32, "ab" * 31, "ff" * 32])
def test_a_checksum_that_is_none_is_refused(tmp_path: Path, digest: str) -> None:
    with ShardWriter(tmp_path / "a.h5", [PLAIN]) as writer:
        with pytest.raises(ValueError, match=r"SHA-256|hexadecimal"):
            writer.add(pixels((4, 4)), id="plain/x", dataset="plain", sha256=digest)
        assert len(writer) == 0


def test_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    name = "plain/" + b"M\xfcller".decode("utf-8", "surrogateescape")
    with ShardWriter(tmp_path / "a.h5", [PLAIN]) as writer:
        for other in (name, "plain/Müller", "plain/零"):
            writer.add(pixels((4, 4)), id=other, dataset="plain")
    archive = Archive(tmp_path / "a.h5")
    assert {record.id for record in archive.records} == {name, "plain/Müller", "plain/零"}
    assert archive.find(name).id == name

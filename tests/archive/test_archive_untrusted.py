"""Tampered and damaged archives are refused with an error that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pscl_hpc.archive import Archive, ShardWriter
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError

from .archives import PLAIN, pixels, write_mixed


def _external_link(file: h5py.File) -> None:
    del file["images"]
    file["images"] = h5py.ExternalLink("other.h5", "/images")


def _external_tiles(file: h5py.File) -> None:
    del file["tiles/uint8x1"]
    file["tiles/uint8x1"] = h5py.ExternalLink("/etc/hostname", "/")


def _soft_link(file: h5py.File) -> None:
    file["elsewhere"] = file["tiles/uint8x1"]
    del file["tiles/uint8x1"]
    file["tiles/uint8x1"] = h5py.SoftLink("/elsewhere")


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 256, 256), "uint8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4, 256, 256))
    del file["tiles/uint8x1"]
    file.create_virtual_dataset("tiles/uint8x1", layout)


def _external_storage(file: h5py.File) -> None:
    del file["images/height"]
    file["images"].create_dataset("height", (30,), "i8", external=[("/etc/passwd", 0, 240)])


def _more_tiles_than_stored(file: h5py.File) -> None:
    file["tiles/uint8x1"].resize(10**9, axis=0)


def _edit(column: str, value: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        values = file[f"images/{column}"][()]
        values[0] = value
        file[f"images/{column}"][...] = values

    return edit


def _drop(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def _version(file: h5py.File) -> None:
    file.attrs["version"] = 99


def _strange_filter(file: h5py.File) -> None:
    del file["tiles/uint8x1"]
    file["tiles"].create_dataset(
        "uint8x1", (9, 256, 256), "u1", np.zeros((9, 256, 256), "u1"), chunks=(1, 256, 256), fletcher32=True
    )


def _collections(text: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file["collections"][()] = text

    return edit


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_external_link, "images is a link"),
        (_external_tiles, "uint8x1 is a link"),
        (_soft_link, "uint8x1 is a link"),
        (_virtual, "uint8x1"),
        (_external_storage, "outside the file"),
        (_more_tiles_than_stored, r"\d+ of 1000000000 tiles"),
        (_strange_filter, "filters"),
        (_edit("height", 100_000), "the tiles of (steel|plain)/"),
        (_edit("height", -3), "size -3"),
        (_edit("width", 1 << 40), str(1 << 40)),
        (_edit("first_tile", -1), "the tiles of (steel|plain)/"),
        (_edit("mask_first_tile", 10**6), "the mask of (steel|plain)/"),
        (_edit("pool", "uint64x1"), "uint64x1"),
        (_edit("dataset", "other"), "'other'"),
        (_drop("images/low"), "low"),
        (_drop("tiles/float32x3"), "float32x3"),
        (_drop("collections"), "collections"),
        (_collections("[{"), "cannot be read"),
        (_collections('[{"name": "steel", "classes": "x"}]'), "cannot be read"),
        (_collections("[]"), "collection of (steel|plain)/"),
        (_version, "version 99"),
    ],
)
def test_a_tampered_file_is_refused(
    tmp_path: Path, tamper: Callable[[h5py.File], None], message: str
) -> None:
    path = tmp_path / "a.h5"
    write_mixed(path)
    with h5py.File(path, "r+") as file:
        tamper(file)
    with pytest.raises(UserError, match=message) as caught:
        Archive(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_archives(tmp_path: Path) -> None:
    missing, empty, text, other = (tmp_path / name for name in ("no.h5", "empty.h5", "text.h5", "other.h5"))
    empty.touch()
    text.write_text("hello" * 100)
    with h5py.File(other, "w") as file:
        file["x"] = 1
    for path in (missing, empty, text, other, tmp_path):
        with pytest.raises(UserError, match=str(path)):
            Archive(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_torn_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.h5"
    write_mixed(path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(UserError, match=r"a\.h5"):
        Archive(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    source = tmp_path / "pictures"
    source.mkdir()
    for number in range(4):
        Image.fromarray(pixels((40, 40), seed=number)).save(source / f"{number}.png")
    out = tmp_path / "shards"
    build(plan([source]), out, BuildOptions(), shard_bytes=2000)
    return out


def test_a_folder_is_one_archive(folder: Path) -> None:
    archive = Archive(folder)
    assert len(archive.shards) == 2  # two images of 1600 bytes pass the limit of 2000
    assert [record.id for record in archive.records] == [f"pictures/{n}" for n in range(4)]
    for number in range(4):
        np.testing.assert_array_equal(archive.read_image(number)[:, :, 0], pixels((40, 40), seed=number))


@pytest.mark.parametrize(
    ("name", "message"), [("../secret.h5", "outside"), ("link.h5", "outside"), ("gone.h5", "missing")]
)
def test_a_manifest_cannot_list_files_outside_its_folder(folder: Path, name: str, message: str) -> None:
    secret = folder.parent / "secret.h5"
    with ShardWriter(secret, [PLAIN]) as writer:
        writer.add(pixels((4, 4)), id="plain/x", dataset="plain")
    (folder / "link.h5").symlink_to(secret)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0] |= {"file": name, "bytes": secret.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        Archive(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x", "version": 1, "shards": []}', "null"])
def test_a_damaged_manifest(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        Archive(folder)


def test_a_shard_of_another_size(folder: Path) -> None:
    shard = next(folder.glob("shard-*.h5"))
    with shard.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=rf"{shard.name} has \d+ bytes"):
        Archive(folder)


def test_the_same_image_in_two_shards(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"].append(manifest["shards"][0])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="pictures/0"):
        Archive(folder)

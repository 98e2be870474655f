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
    layout = h5py.VirtualLayout((4,), "uint8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    del file["tiles/uint8x1/0"]
    file.create_virtual_dataset("tiles/uint8x1/0", layout)


def _external_storage(file: h5py.File) -> None:
    del file["tiles/uint8x1/0"]
    file["tiles/uint8x1"].create_dataset("0", (240,), "u1", external=[("/etc/passwd", 0, 240)])


def _external_index(file: h5py.File) -> None:
    kind, count = file["images"].dtype, len(file["images"])
    del file["images"]
    file.create_dataset("images", (count,), kind, external=[("/etc/passwd", 0, count * kind.itemsize)])


def _fewer_values(file: h5py.File) -> None:
    values = file["tiles/uint8x1/0"][:100]
    del file["tiles/uint8x1/0"]
    file["tiles/uint8x1"].create_dataset("0", data=values)


def _more_tiles_than_listed(file: h5py.File) -> None:
    file["tiles/uint16x1/0"].resize(10**6, axis=0)


def _tile_elsewhere(file: h5py.File) -> None:
    table = file["tiles/uint16x1/0-chunks"][()]
    table["offset"][0] = 1 << 60
    file["tiles/uint16x1/0-chunks"][...] = table


def _edit(column: str, value: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        values = file["images"][()]
        values[column][0] = value
        file["images"][...] = values

    return edit


def _rename(column: str, text: bytes) -> Callable[[h5py.File], None]:
    """Another name for the first number of a column."""

    def edit(file: h5py.File) -> None:
        names = file[f"names/{column}"][()].astype("S40")
        names[0] = text
        del file[f"names/{column}"]
        file["names"].create_dataset(column, data=names)

    return edit


def _without_column(file: h5py.File) -> None:
    images = file["images"][()]
    del file["images"]
    file["images"] = images[[name for name in images.dtype.names if name != "low"]]


def _other_type(file: h5py.File) -> None:
    images = file["images"][()]
    kind = np.dtype([(name, "<i8" if name == "low" else images.dtype[name]) for name in images.dtype.names])
    del file["images"]
    file["images"] = images.astype(kind)


def _chunked_index(file: h5py.File) -> None:
    images = file["images"][()]
    del file["images"]
    file.create_dataset("images", data=images, chunks=(4,))


def _out_of_order(file: h5py.File) -> None:
    file["images"][...] = file["images"][()][::-1]


def _drop(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def _version(file: h5py.File) -> None:
    file.attrs["version"] = 99


def _strange_filter(file: h5py.File) -> None:
    del file["tiles/uint16x1/0"]
    file["tiles/uint16x1"].create_dataset(
        "0", (9, 64, 64), "u2", np.zeros((9, 64, 64), "u2"), chunks=(1, 64, 64), fletcher32=True
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
        (_virtual, "outside the file"),
        (_external_storage, "outside the file"),
        (_external_index, "outside the file"),
        (_fewer_values, "the tiles of (steel|plain)/"),
        (_more_tiles_than_listed, "of 1000000 tiles"),
        (_tile_elsewhere, "outside the file"),
        (_strange_filter, "filters"),
        (_without_column, "low"),
        (_other_type, "types"),
        (_chunked_index, "one piece"),
        (_out_of_order, "order"),
        (_edit("height", 100_000), "the tiles of (steel|plain)/"),
        (_edit("height", -3), "size -3"),
        (_edit("width", (1 << 24) + 1), str((1 << 24) + 1)),
        (_edit("start", -1), "the tiles of (steel|plain)/"),
        (_edit("start", 1 << 62), "the tiles of (steel|plain)/"),
        (_edit("block", 9), "the tiles of (steel|plain)/"),
        (_edit("mask_block", 0), "the mask of (steel|plain)/"),
        (_edit("split", 7), "split of (steel|plain)/"),
        (_edit("split", -1), "split of (steel|plain)/"),
        (_rename("pool", b"uint64x1"), "uint64x1"),
        (_rename("dataset", b"other"), "other"),
        (_rename("ingest", b"{"), "JSON"),
        (_drop("tiles/float32x3"), "float32x3"),
        (_drop("collections"), "collections"),
        (_collections("[{"), "cannot be read"),
        (_collections('[{"name": "steel", "classes": "x"}]'), "cannot be read"),
        (_collections("[]"), "collection of the images (steel|plain)/"),
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

"""Reading any image and window in any process; the file is ordinary HDF5."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pscl_hpc.archive import Archive, ShardWriter, shard
from pscl_hpc.archive.codecs import CODECS
from pscl_hpc.errors import UserError
from tests.helpers import PATIENCE_S

from .archives import PLAIN, STEEL, labels, pixels, write_mixed

SIDES = st.sampled_from([1, 2, 37, 255, 256, 257, 511, 512, 513, 600])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=SIDES, width=SIDES)
def test_any_window_equals_the_numpy_slice(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, height: int, width: int
) -> None:
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "float32"]))
    channels = data.draw(st.sampled_from([1, 3]))
    image = pixels((height, width, channels), dtype)
    mask = labels((height, width))
    path = tmp_path_factory.mktemp("window") / "a.h5"
    with ShardWriter(path, [STEEL], data.draw(st.sampled_from([*CODECS]))) as writer:
        writer.add(pixels((3, 300)), id="steel/before", dataset="steel", mask=labels((3, 300)))
        writer.add(image, id="steel/a", dataset="steel", mask=mask)
        writer.add(pixels((300, 3)), id="steel/z", dataset="steel")
    with Archive(path) as archive:
        index = archive.find("steel/a").index
        for _ in range(5):
            top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
            rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
            window = (top, left, rows, columns)
            inside = np.s_[top : top + rows, left : left + columns]
            np.testing.assert_array_equal(archive.read_image(index, window), image[inside])
            np.testing.assert_array_equal(archive.read_mask(index, window), mask[inside])


@pytest.mark.parametrize("compression", ["auto", *CODECS])
def test_every_type_and_codec_comes_back_exactly(tmp_path: Path, compression: str) -> None:
    content = write_mixed(tmp_path / "a.h5", compression)
    archive = Archive(tmp_path / "a.h5")
    assert [record.id for record in archive.records] == sorted(content)
    for record in archive.records:
        image, mask = content[record.id]
        read = archive.read_image(record.index)
        assert read.dtype == image.dtype
        assert (record.height, record.width, record.channels, record.dtype) == (
            *image.shape,
            image.dtype.name,
        )
        np.testing.assert_array_equal(read, image)
        assert record.has_mask == (mask is not None)
        if mask is not None:
            np.testing.assert_array_equal(archive.read_mask(record.index), mask)


def test_fingerprint_ignores_compression_order_and_paths_but_not_content(tmp_path: Path) -> None:
    made: list[str] = []

    def write(order: str, compression: str = "auto", **changed: Any) -> str:
        name = f"{len(made)}.h5"
        with ShardWriter(tmp_path / name, [STEEL], compression) as writer:
            for stem in order:
                fields = {"image": pixels((9, 300), seed=ord(stem)), "mask": labels((9, 300), ord(stem))}
                fields |= {"source": f"{name}/{stem}.png"} | (changed if stem == "b" else {})
                writer.add(**fields, id=f"steel/{stem}", dataset="steel")
        made.append(Archive(tmp_path / name).fingerprint)
        return made[-1]

    first = write("ab")
    assert write("ba", "zstd") == first
    image, mask = pixels((9, 300), seed=ord("b")), labels((9, 300), ord("b"))
    image[8, 299] ^= 1
    mask[0, 0] = (mask[0, 0] + 1) % 3
    write("a")
    # Each field alone must change the fingerprint, because the checksums of files are not always known.
    write("ab", image=image)
    write("ab", mask=mask)
    write("ab", mask=None)
    texts = ("sha256", "mask_sha256", "split", "specimen", "production_batch", "alloy")
    values = [{key: "ab" * 32 if key.endswith("sha256") else "x"} for key in texts]
    for change in (*values, {"magnification": 500.0}, {"um_per_pixel": 0.25}):
        write("ab", **change)
    for intensity in ((0.0, 200.0), (9.0, 255.0)):
        write("ab", intensity=intensity)
    assert made[0] == made[1]
    assert len(set(made[1:])) == len(made[1:])


@pytest.mark.parametrize("compression", ["none", "gzip", "lzf"])
def test_the_file_is_ordinary_hdf5(tmp_path: Path, compression: str) -> None:
    """Pixels read by the filter pipeline of h5py, put together by hand, equal the image."""
    content = write_mixed(tmp_path / "a.h5", compression)
    with h5py.File(tmp_path / "a.h5") as file:
        rows = {row["id"].decode(): row for row in file["images"][()]}
        pools = file["names/pool"][()].astype(str)
        for name, (image, mask) in content.items():
            row = rows[name]
            height, width = image.shape[:2]
            for pool, block, start, truth in (
                (pools[row["pool"]], row["block"], row["start"], image),
                ("mask", row["mask_block"], row["mask_start"], mask),
            ):
                if truth is None:
                    continue
                dataset = file[f"tiles/{pool}/{block}"]
                if dataset.ndim == 1:
                    whole = np.empty(truth.reshape(height, width, -1).shape, dataset.dtype)
                    for top in range(0, height, 256):
                        for left in range(0, width, 256):
                            part = whole[top : top + 256, left : left + 256]
                            part[...] = dataset[start : start + part.size].reshape(part.shape)
                            start += part.size
                else:
                    side = dataset.shape[1]
                    down, across = -(-height // side), -(-width // side)
                    tiles = dataset[start : start + down * across]
                    tiles = tiles.reshape(down, across, side, side, -1).transpose(0, 2, 1, 3, 4)
                    whole = tiles.reshape(down * side, across * side, -1)[:height, :width]
                np.testing.assert_array_equal(whole, truth.reshape(whole.shape))


@pytest.mark.parametrize(
    "window",
    [
        (-1, 0, 5, 5),
        (0, -1, 5, 5),
        (0, 0, 0, 5),
        (0, 0, 5, 0),
        (250, 0, 10, 5),
        (0, 250, 5, 7),
        (0, 0, -1, 5),
    ],
)
def test_a_window_outside_is_an_error(tmp_path: Path, window: tuple[int, int, int, int]) -> None:
    write_mixed(tmp_path / "a.h5")
    archive = Archive(tmp_path / "a.h5")
    index = archive.find("steel/1-uint8-1").index  # 255 x 256
    for read in (archive.read_image, archive.read_mask, archive.read_unit):
        with pytest.raises(ValueError, match="steel/1-uint8-1"):
            read(index, window)


def test_indices_and_ids_that_do_not_exist(tmp_path: Path) -> None:
    write_mixed(tmp_path / "a.h5")
    archive = Archive(tmp_path / "a.h5")
    for index in (-1, len(archive)):
        with pytest.raises(ValueError, match=r"0\.\.\d"):
            archive.read_image(index)
    with pytest.raises(ValueError, match=r"plain/0-uint8-1"):
        archive.read_mask(archive.find("plain/0-uint8-1").index)
    with pytest.raises(UserError, match=r"'steel/3-float32-[13]'"):
        archive.find("steel/3-float32-")
    with pytest.raises(UserError, match="'steel'"):
        archive.select(datasets=["stel"])


def test_select_combines_conditions(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.h5", [STEEL, PLAIN]) as writer:
        writer.add(pixels((4, 4)), id="steel/a", dataset="steel", split="train", mask=labels((4, 4)))
        writer.add(pixels((4, 4)), id="steel/b", dataset="steel", split="test")
        writer.add(pixels((4, 4)), id="plain/c", dataset="plain")
    archive = Archive(tmp_path / "a.h5")
    ids = lambda **how: [record.id for record in archive.select(**how)]  # noqa: E731
    assert ids() == ["plain/c", "steel/a", "steel/b"]
    assert ids(datasets=["steel"], splits=["train", ""]) == ["steel/a"]
    assert ids(has_mask=False) == ["plain/c", "steel/b"]
    assert ids(splits=[]) == []
    assert archive.collections["steel"] == STEEL


def test_unit_range_by_dtype(tmp_path: Path) -> None:
    grey = np.array([[0, 51, 255]], np.uint8)
    deep = np.arange(1001, dtype=np.uint16)[None] * 7
    real = np.array([[np.nan, -1.0, 0.5, 2.0, np.inf]], np.float32)
    flat = np.full((2, 2), 9, np.uint16)
    colour = np.zeros((1, 1, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    with ShardWriter(tmp_path / "a.h5", [PLAIN]) as writer:
        for name, image in {"grey": grey, "deep": deep, "real": real, "flat": flat, "colour": colour}.items():
            writer.add(image, id=f"plain/{name}", dataset="plain")
    archive = Archive(tmp_path / "a.h5")

    def unit(name: str, channels: int = 1) -> np.ndarray:
        return archive.read_unit(archive.find(f"plain/{name}").index, channels=channels)

    np.testing.assert_allclose(unit("grey"), [[[0, 0.2, 1]]], rtol=1e-6)
    np.testing.assert_array_equal(unit("grey", 3), np.repeat(unit("grey"), 3, axis=0))
    record = archive.find("plain/deep")
    low, high = np.percentile(deep, (0.5, 99.5))
    assert (record.low, record.high) == pytest.approx((low, high))
    np.testing.assert_allclose(unit("deep")[0], np.clip((deep - low) / (high - low), 0, 1), atol=1e-6)
    np.testing.assert_allclose(unit("real")[0, 0, [0, 1, 3, 4]], [0, 0, 1, 1])
    assert unit("flat").max() == 0
    np.testing.assert_allclose(unit("colour"), 0.299, rtol=1e-6)
    np.testing.assert_array_equal(unit("colour", 3)[:, 0, 0], [1, 0, 0])
    with pytest.raises(ValueError, match="channels"):
        unit("grey", 2)


def _shards(folder: Path) -> Archive:
    """A folder of 70 shards: more than the reader keeps open."""
    from pscl_hpc.archive.manifest import ShardEntry, write_manifest
    from pscl_hpc.files import sha256_of

    folder.mkdir()
    entries = []
    for number in range(70):
        shard = folder / f"s{number}.h5"
        with ShardWriter(shard, [PLAIN]) as writer:
            writer.add(pixels((20, 20), seed=number), id=f"plain/{number:03d}", dataset="plain")
        entries.append(ShardEntry(shard.name, sha256_of(shard), shard.stat().st_size, 1))
    write_manifest(folder, entries, "0" * 64)
    return Archive(folder)


WORKERS = """
import sys
from pscl_hpc.archive import Archive
from torch.utils.data import DataLoader

class Sums:
    def __init__(self, archive):
        self.archive = archive
    def __len__(self):
        return len(self.archive)
    def __getitem__(self, index):
        self.archive.read_image(index)  # twice: files are opened, then kept
        return index, int(self.archive.read_image(index).sum())

if __name__ == "__main__":
    archive = Archive(sys.argv[1])
    archive.read_image(3)  # so that a forked worker inherits an open file
    workers = {"fork": 2, "spawn": 1}[sys.argv[2]]
    loader = DataLoader(Sums(archive), 7, num_workers=workers, multiprocessing_context=sys.argv[2])
    for indices, sums in loader:
        for index, value in zip(indices, sums):
            print(int(index), int(value))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(tmp_path: Path, method: str) -> None:
    archive = _shards(tmp_path / "shards")
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, script, archive.path, method],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    found = dict(map(int, line.split()) for line in done.stdout.splitlines())
    assert found == {index: int(archive.read_image(index).sum()) for index in range(len(archive))}


def test_threads_share_one_archive(tmp_path: Path) -> None:
    archive = _shards(tmp_path / "shards")
    truth = [pixels((20, 20), seed=number)[:, :, None] for number in range(70)]

    def wrong(start: int) -> list[int]:
        indices = [(start + 17 * step) % len(archive) for step in range(300)]
        return [i for i in indices if not np.array_equal(archive.read_image(i), truth[i])]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(wrong, range(8))) == [[]] * 8


def test_open_files_stay_few_and_close_closes(tmp_path: Path) -> None:
    archive = _shards(tmp_path / "shards")
    before = len(os.listdir("/proc/self/fd"))
    for index in range(len(archive)):
        archive.read_image(index)
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    archive.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert archive.read_image(0).shape == (20, 20, 1)


def test_pickle_drops_handles(tmp_path: Path) -> None:
    content = write_mixed(tmp_path / "a.h5")
    archive = Archive(tmp_path / "a.h5")
    archive.read_image(0)
    again = pickle.loads(pickle.dumps(archive))
    assert again.fingerprint == archive.fingerprint
    np.testing.assert_array_equal(again.read_image(3), content[again.records[3].id][0])


def test_a_file_replaced_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_mixed(path)
    archive = Archive(path)
    with ShardWriter(path, [PLAIN]) as writer:
        writer.add(pixels((4, 4)), id="plain/x", dataset="plain")
    with pytest.raises(UserError, match=r"a\.h5.*replaced"):
        archive.read_image(0)


def test_a_file_cut_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_mixed(path)
    archive = Archive(path)
    archive.read_image(0)
    os.truncate(path, 5000)
    with pytest.raises(UserError, match=r"a\.h5.*damaged"):
        archive.read_image(len(archive) - 1)


@pytest.mark.parametrize("kind", [MemoryError, ImportError])
def test_lack_of_memory_or_of_a_module_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise kind("no room")

    write_mixed(tmp_path / "a.h5")
    monkeypatch.setattr(shard, "_open", fail)
    with pytest.raises(kind, match="no room"):
        Archive(tmp_path / "a.h5")


def test_a_read_only_file_and_folder_are_enough(tmp_path: Path) -> None:
    folder = tmp_path / "readonly"
    folder.mkdir()
    write_mixed(folder / "a.h5")
    (folder / "a.h5").chmod(0o444)
    folder.chmod(0o555)
    try:
        before = sorted(folder.iterdir())
        assert Archive(folder / "a.h5").read_image(0).size
        assert sorted(folder.iterdir()) == before
    finally:
        folder.chmod(0o755)

"""Copies of an archive on a node's local disk: complete, made once, found again, and removed when room is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pscl_hpc.archive import Archive, staging
from pscl_hpc.archive.staging import stage_archive, staged_path
from pscl_hpc.errors import JobError, UserError
from tests.helpers import PATIENCE_S, small_archive


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins without copies and closes its locks."""
    monkeypatch.setattr(staging, "_COPIES", {})
    monkeypatch.setattr(staging, "_HELD", [])
    yield
    for lock in staging._HELD:
        lock.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return small_archive(tmp_path / "source" / "a.h5") if (tmp_path / "source").mkdir() is None else tmp_path


def again(archive: Path, disk: Path) -> Path:
    """Stage the archive as another process of the node would."""
    staging._COPIES.clear()
    return stage_archive(archive, disk)


def test_the_copy_is_read_in_place_of_the_archive(archive: Path, tmp_path: Path) -> None:
    with Archive(archive) as before:
        pixels, fingerprint = before.read_image(0), before.fingerprint
    copy = stage_archive(archive, tmp_path / "disk")
    assert copy.read_bytes() == archive.read_bytes()
    assert staged_path(archive) == copy
    archive.write_bytes(b"gone")
    with Archive(archive) as after:
        assert (after.path, after.fingerprint) == (archive, fingerprint)
        assert np.array_equal(after.read_image(0), pixels)
    assert os.stat(copy.parents[1]).st_mode & 0o777 == 0o700


def test_a_folder_of_shards_keeps_its_checksums(archive: Path, tmp_path: Path) -> None:
    from pscl_hpc.archive.manifest import ShardEntry, write_manifest
    from pscl_hpc.files import sha256_of

    folder = archive.parent
    entry = ShardEntry("a.h5", sha256_of(archive), archive.stat().st_size, 7)
    write_manifest(folder, [entry], "0" * 64)
    copy = stage_archive(folder, tmp_path / "disk")
    assert sorted(path.name for path in copy.iterdir()) == ["a.h5", "manifest.json"]
    with Archive(folder) as opened:
        assert len(opened) == 7
    # A byte that changed at its source since it was built.
    staging._COPIES.clear()
    data = bytearray(archive.read_bytes())
    data[-1] ^= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.h5.*manifest\.json"):
        stage_archive(folder, tmp_path / "other")


def test_it_is_copied_once_and_again_after_a_change_or_damage(archive: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    copy = stage_archive(archive, disk)
    first = copy.stat().st_ino
    assert again(archive, disk).stat().st_ino == first
    for lock in staging._HELD:  # as if those processes had ended
        lock.close()
    staging._HELD.clear()
    copy.write_bytes(b"cut short")
    torn = copy.parent.with_name(copy.parent.name + ".partial")
    torn.mkdir()
    (torn / "a.h5").write_bytes(b"half")
    assert again(archive, disk).read_bytes() == archive.read_bytes()
    assert not torn.exists()
    small_archive(archive, images=4)
    assert again(archive, disk).read_bytes() == archive.read_bytes()


def test_an_archive_that_grows_while_it_is_copied_is_an_error(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = staging._copy

    def grow(source: Path, target: Path) -> str:
        digest = copy(source, target)
        with source.open("ab") as file:
            file.write(b"more")
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_copy", grow)
        with pytest.raises(UserError, match=r"a\.h5 was changed"):
            stage_archive(archive, tmp_path / "disk")
    assert stage_archive(archive, tmp_path / "disk").read_bytes() == archive.read_bytes()


def test_a_copy_that_differs_when_read_back_is_an_error(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "sha256_of", lambda path: "0" * 64)
    with pytest.raises(JobError, match=r"a\.h5"):
        stage_archive(archive, tmp_path / "disk")
    monkeypatch.undo()
    assert again(archive, tmp_path / "disk").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("how", ["full", "differs", "Ctrl-C", "not renamed"])
def test_what_fails_leaves_nothing_on_the_disk(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """An incomplete copy on a full disk would keep it full."""
    copied = staging._copy

    def full(source: Path, target: Path) -> str:
        copied(source, target)
        raise KeyboardInterrupt if how == "Ctrl-C" else OSError(28, os.strerror(28))

    def kept(self: Path, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    if how in ("full", "Ctrl-C"):
        monkeypatch.setattr(staging, "_copy", full)
    elif how == "not renamed":
        monkeypatch.setattr(Path, "rename", kept)
    else:
        monkeypatch.setattr(staging, "sha256_of", lambda path: "0" * 64)
    kind = {"Ctrl-C": KeyboardInterrupt, "differs": JobError}.get(how, UserError)
    with pytest.raises(kind) as caught:
        stage_archive(archive, tmp_path / "disk")
    if kind is UserError:
        assert "a.h5" in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert [path.suffix for path in (tmp_path / "disk").glob("*/*")] == [".lock"]
    monkeypatch.undo()
    monkeypatch.setattr(staging, "_COPIES", {})
    monkeypatch.setattr(staging, "_HELD", [])
    assert stage_archive(archive, tmp_path / "disk").read_bytes() == archive.read_bytes()
    for lock in staging._HELD:
        lock.close()


def test_where_room_is_short_unused_copies_go_oldest_first(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, size = tmp_path / "disk", archive.stat().st_size
    copies = []
    for name in ("old", "older", "used"):
        other = shutil.copy(archive, archive.with_name(f"{name}.h5"))
        copies.append(stage_archive(Path(other), disk))
    for lock in staging._HELD[:2]:
        lock.close()
    home = copies[0].parents[1]
    for age, copy in zip((100, 200, 300), copies, strict=True):
        os.utime(home / f"{copy.parent.name}.lock", (1e9 - age, 1e9 - age))
    usage = namedtuple("usage", "free")

    def free(path: Path) -> usage:
        """A disk that holds three copies and a half."""
        taken = sum(file.stat().st_size for file in home.rglob("*.h5"))
        return usage(3 * size + size // 2 - taken)

    monkeypatch.setattr(staging.shutil, "disk_usage", free)
    stage_archive(archive, disk)
    assert [copy.exists() for copy in copies] == [True, False, True]
    for lock in staging._HELD:
        if not lock.closed:
            lock.close()
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage(size // 2))
    with pytest.raises(UserError, match=r"[\d.]+ GB.*[\d.]+ GB"):
        stage_archive(Path(shutil.copy(archive, archive.with_name("new.h5"))), disk)


def test_errors_of_staging_name_the_path(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.h5"):
        stage_archive(tmp_path / "absent.h5", tmp_path / "disk")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        stage_archive(archive, tmp_path / "file")


def test_a_rank_that_looked_too_early_does_not_wait_for_the_end_of_the_others(
    archive: Path, tmp_path: Path
) -> None:
    copy = stage_archive(archive, tmp_path / "disk")
    aside = copy.parent.with_name("aside")
    copy.parent.rename(aside)
    staging._COPIES.clear()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(stage_archive, archive, tmp_path / "disk")
        # It finds no copy, and the lock held by a rank that uses one. Correct code passes however late this thread is.
        time.sleep(0.5)
        assert not late.done()
        aside.rename(copy.parent)
        try:
            assert late.result(timeout=PATIENCE_S) == copy
        finally:
            for lock in staging._HELD:
                lock.close()


def test_ranks_of_a_node_share_one_copy(archive: Path, tmp_path: Path) -> None:
    # None of them ends before all have their copy: whoever waits for a lock of the others would wait for ever.
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom pscl_hpc.archive.staging import stage_archive\n"
        "copy = stage_archive(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "Path(sys.argv[3]).write_text(str(copy.stat().st_ino))\n"
        "while len(list(Path(sys.argv[3]).parent.glob('rank-*'))) < 3: time.sleep(0.05)\n"
    )
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                script,
                str(archive),
                str(tmp_path / "disk"),
                str(tmp_path / f"rank-{rank}"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    texts = [rank.communicate(timeout=PATIENCE_S)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], texts
    assert sum("staging" in text for text in texts) == 1
    assert len({(tmp_path / f"rank-{rank}").read_text() for rank in range(3)}) == 1

"""Images are added to a file all or none, and those who read it go on with what they opened."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive import growing as growing_module
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.check import check
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError
from tests.helpers import PATIENCE_S

from .archives import make_sources, packed, pixels, run_killed

KILLED = """
import os, sys
from pathlib import Path
from pscl_hpc.archive import growing
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
stage, out, source = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
write_at, apply = growing._write_at, growing._apply
def write(descriptor, data, offset):
    if stage == "pixels" and len(data) >= 2000:
        data = bytes(data)[:1000]
    footer = bytes(data[:16]) == growing._MARK
    if stage == "footer" and footer:
        data = bytes(data)[:20]
    write_at(descriptor, data, offset)
    if (stage == "pixels" and len(data) == 1000) or (stage in ("footer", "committed") and footer):
        os.kill(os.getpid(), 9)
def half(file, changes, end):
    first = dict(list(changes.items())[:1])
    for page, data in first.items():
        write_at(file.fileno(), bytes(data), page * 4096)
    os.kill(os.getpid(), 9)
growing._write_at = write
if stage == "applying":
    growing._apply = half
build(plan([source]), out, BuildOptions())
"""


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, Path]:
    """An archive of 3 images, and its sources, which have 5 now."""
    sources = make_sources(tmp_path / "steel", 3)
    packed(sources, tmp_path / "a.h5")
    make_sources(tmp_path / "steel", 5)
    return tmp_path / "a.h5", sources


@pytest.mark.parametrize("stage", ["pixels", "footer", "committed", "applying"])
def test_kill_9_while_images_are_added(tmp_path: Path, grown: tuple[Path, Path], stage: str) -> None:
    out, sources = grown
    before = Archive(out)
    fingerprint = before.fingerprint
    run_killed(tmp_path / "killed.py", KILLED, stage, out, sources)
    packed(sources, tmp_path / "whole.h5")
    whole = Archive(tmp_path / "whole.h5").fingerprint
    after = Archive(out)
    assert after.fingerprint == (whole if stage in ("committed", "applying") else fingerprint)
    assert not check(after)
    os.chmod(out, 0o444)  # a reader cannot complete the addition, and need not
    assert Archive(out).fingerprint == after.fingerprint
    os.chmod(out, 0o644)
    packed(sources, out)
    assert Archive(out).fingerprint == whole
    packed(make_sources(tmp_path / "steel", 6), out)
    assert not check(Archive(out))
    with h5py.File(out) as file:  # by HDF5 itself
        assert file["images"].shape == (3,)
        assert sum(len(file["added"][name]["images"]) for name in file["added"]) == 3
    before.close()
    np.testing.assert_array_equal(before.read_image(1)[:, :, 0], pixels((40, 300), seed=1))


FULL = """
import os, resource, sys
from pathlib import Path
from pscl_hpc.archive import growing
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError
out, room = Path(sys.argv[2]), int(sys.argv[3])
found = plan([Path(sys.argv[1])])
def full():
    resource.setrlimit(resource.RLIMIT_FSIZE, (out.stat().st_size + room,) * 2)
journal = growing._CHANGE.pack
if room < 1000:  # the pixels fit, but not the journal
    growing._CHANGE = type("Change", (), {"pack": lambda *given: full() or journal(*given)})
else:
    full()
try:
    build(found, out, BuildOptions())
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [10, 5000, 20_000])
def test_a_full_disk_while_images_are_added(tmp_path: Path, grown: tuple[Path, Path], room: int) -> None:
    """One line of error; the archive is byte for byte as before, and the addition can be made later."""
    out, sources = grown
    before = out.read_bytes()
    (tmp_path / "full.py").write_text(FULL)
    command = [sys.executable, str(tmp_path / "full.py"), str(sources), str(out), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.startswith(f"{out} cannot be written (File too large)"), done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert out.read_bytes() == before
    packed(sources, out)
    assert len(Archive(out)) == 5


def test_readers_go_on(grown: tuple[Path, Path]) -> None:
    """Open files, files that are opened again, and readers in other processes see what there was."""
    out, sources = grown
    old = Archive(out)
    old.read_image(0)
    sent = pickle.dumps(old)
    size = out.stat().st_size
    packed(sources, out)
    for reader in (old, pickle.loads(sent)):
        assert len(reader) == 3
        for index in range(3):
            np.testing.assert_array_equal(
                reader.read_image(index)[:, :, 0], pixels((40, 300), seed=index), strict=True
            )
    old.close()
    assert [record.id for record in old.records] == [f"steel/{index:04d}" for index in range(3)]
    new = Archive(out)
    assert len(new) == 5
    assert len(new.shards) == 2
    assert out.stat().st_size - size < 2 * 40 * 300 + 100_000, "the old images were copied"
    shutil.copyfile(out, out.with_name("copy.h5"))
    assert Archive(out.with_name("copy.h5")).fingerprint == new.fingerprint


def test_a_file_of_other_images_is_not_one_that_has_grown(tmp_path: Path) -> None:
    out, other = tmp_path / "a.h5", tmp_path / "b.h5"
    for path, seed in ((out, 0), (other, 1)):
        with ShardWriter(path, [Collection("steel")]) as writer:
            writer.add(pixels((40, 300), seed=seed), id="steel/0", dataset="steel")
    reader = Archive(out)
    data = other.read_bytes()
    out.write_bytes(data + b"\0" * 100)  # in place, of the same form, and longer
    with pytest.raises(UserError, match=r"a\.h5"):
        reader.read_image(0)


@pytest.mark.parametrize("damage", ["hash", "length"])
def test_a_journal_that_is_not_one(tmp_path: Path, damage: str) -> None:
    """Bytes behind the archive that look like a journal, but have another checksum or length, are no part of it."""
    out = tmp_path / "a.h5"
    packed(make_sources(tmp_path / "steel", 2), out)
    fingerprint = Archive(out).fingerprint
    length = 1 << 60 if damage == "length" else 16
    with out.open("ab") as file:
        file.write(b"x" * 16 + growing_module._FOOTER.pack(growing_module._MARK, length, b"0" * 32))
    assert Archive(out).fingerprint == fingerprint


def test_many_additions(tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    for count in (1, 2, 2, 5, 9, 10):
        build(plan([make_sources(tmp_path / "steel", count)]), out, BuildOptions())
    archive = Archive(out)
    assert [len(shard.index) for shard in archive.shards] == [1, 1, 3, 4, 1]
    assert [row.id for row in archive.all_rows()] == [archive.rows[index].id for index in range(10)]
    assert archive.find("steel/0007").index == 7
    packed(tmp_path / "steel", tmp_path / "whole.h5")
    assert archive.fingerprint == Archive(tmp_path / "whole.h5").fingerprint
    assert not check(archive)

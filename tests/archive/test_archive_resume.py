"""Builds that are killed, stopped or started twice can be resumed, and nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Archive, packer
from pscl_hpc.archive import build as build_module
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError
from tests.helpers import PATIENCE_S

from .archives import make_sources, packed, pixels, run_killed

KILLED = """
import os, sys
from pathlib import Path
from pscl_hpc.archive import build, packer, parts
from pscl_hpc.archive.ingest.sources import plan
packer.PART_BYTES = 30_000
stage, out, source = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
original = {"pack": packer.Packer.pack, "merge": parts.merge, "manifest": parts.write_manifest}
calls = 0
def pack(self, *args):
    global calls
    calls += 1
    if stage == "pack" and calls == 8:
        os.kill(os.getpid(), 9)
    return original["pack"](self, *args)
def merge(*args):
    original["merge"](*args)
    if stage == "merge":
        os.kill(os.getpid(), 9)
def manifest(*args):
    os.kill(os.getpid(), 9)
packer.Packer.pack, parts.merge = pack, merge
if stage == "manifest":
    parts.write_manifest = manifest
build.build(plan([source]), out, build.BuildOptions(), shard_bytes=40_000 if out.suffix != ".h5" else None)
"""


@pytest.mark.parametrize(
    ("stage", "name"), [("pack", "a.h5"), ("merge", "a.h5"), ("merge", "a"), ("manifest", "a")]
)
@pytest.mark.parametrize("adding", [False, True])
def test_kill_9_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, name: str, adding: bool
) -> None:
    """A build killed at the worst moments and resumed makes the same archive as an undisturbed one."""
    out = tmp_path / name
    shard_bytes = None if out.suffix else 40_000
    sources = make_sources(tmp_path / "steel", 3)
    before = ""
    if adding:
        packed(sources, out, shard_bytes=shard_bytes)
        before = Archive(out).fingerprint
    make_sources(tmp_path / "steel", 12)
    run_killed(tmp_path / "killed.py", KILLED, stage, out, sources)
    packed(sources, tmp_path / "whole.h5")
    whole = Archive(tmp_path / "whole.h5").fingerprint
    added = adding and stage == "merge" and not shard_bytes  # the last step of adding to a file
    if adding:
        assert Archive(out).fingerprint == (whole if added else before)
    else:
        assert not (out / "manifest.json" if shard_bytes else out).exists()
    assert len(list((tmp_path / f"{name}.partial").glob("part-*.h5"))) >= 2

    packs = []
    original = packer.Packer.pack
    monkeypatch.setattr(
        packer.Packer,
        "pack",
        lambda self, item, hashes: packs.append(item.id) or original(self, item, hashes),
    )
    packed(sources, out, shard_bytes=shard_bytes)
    assert len(packs) < (9 if adding else 12), "the finished parts were not used"
    assert Archive(out).fingerprint == whole
    assert not (tmp_path / f"{name}.partial").exists()
    if shard_bytes:
        listed = {entry["file"] for entry in json.loads((out / "manifest.json").read_text())["shards"]}
        assert {path.name for path in out.glob("shard-*.h5")} == listed


def test_kill_9_at_a_random_instant(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 150)
    out = tmp_path / "a.h5"
    script = tmp_path / "slow.py"
    script.write_text(KILLED)
    packed(sources, tmp_path / "whole.h5")
    for pause in (0.05, 0.2):
        process = subprocess.Popen([sys.executable, script, "never", out, sources])
        scratch = tmp_path / "a.h5.partial"
        for _ in range(2000):
            if scratch.exists() or process.poll() is not None:
                break
            time.sleep(0.005)
        time.sleep(pause)
        process.kill()
        process.wait()
    packed(sources, out)
    assert Archive(out).fingerprint == Archive(tmp_path / "whole.h5").fingerprint


def _interrupted(
    sources: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException
) -> None:
    """A build that is stopped by ``error`` after ``after`` files."""
    original = packer.Packer.pack
    calls = []

    def pack(self, item, hashes):
        calls.append(item)
        if len(calls) > after:
            raise error
        return original(self, item, hashes)

    monkeypatch.setattr(packer.Packer, "pack", pack)
    with pytest.raises(type(error)):
        packed(sources, out)
    monkeypatch.undo()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_ctrl_c_and_sigterm_keep_every_packed_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    sources = make_sources(tmp_path / "steel", 6)
    _interrupted(sources, tmp_path / "a.h5", monkeypatch, 4, error)
    part = Archive(tmp_path / "a.h5.partial" / "part-000000.h5")
    assert len(part) == 4


def test_files_changed_before_a_resume_are_packed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = make_sources(tmp_path / "steel", 6)
    _interrupted(sources, tmp_path / "a.h5", monkeypatch, 4, KeyboardInterrupt())
    Image.fromarray(pixels((40, 300), seed=77)).save(sources / "img" / "0000.png")
    (sources / "img" / "0002.png").unlink()
    (sources / "img" / "0001.png").write_bytes(b"torn meanwhile")
    result = packed(sources, tmp_path / "a.h5")
    archive = Archive(tmp_path / "a.h5")
    assert [record.id for record in archive.records] == [f"steel/{n:04d}" for n in (0, 3, 4, 5)]
    np.testing.assert_array_equal(archive.read_image(0)[:, :, 0], pixels((40, 300), seed=77))
    assert [item.path for item in result.skipped] == ["steel/img/0001.png"]


def test_a_torn_part_is_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = make_sources(tmp_path / "steel", 6)
    _interrupted(sources, tmp_path / "a.h5", monkeypatch, 4, KeyboardInterrupt())
    os.truncate(tmp_path / "a.h5.partial" / "part-000000.h5", 3000)
    packed(sources, tmp_path / "a.h5")
    packed(sources, tmp_path / "b.h5")
    assert Archive(tmp_path / "a.h5").fingerprint == Archive(tmp_path / "b.h5").fingerprint


def test_resuming_with_other_options_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = make_sources(tmp_path / "steel", 6)
    _interrupted(sources, tmp_path / "a.h5", monkeypatch, 4, KeyboardInterrupt())
    with pytest.raises(UserError, match=r"a\.h5\.partial.*options"):
        build(plan([sources]), tmp_path / "a.h5", BuildOptions(crop_bottom=3))
    assert list((tmp_path / "a.h5.partial").glob("part-*.h5"))


@pytest.mark.parametrize("name", ["a.h5", "a"])
def test_a_build_that_ends_while_another_starts_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Both find no archive; one of them makes it before the other has the lock."""
    shard_bytes = None if name.endswith(".h5") else 1 << 20
    first, second = make_sources(tmp_path / "x" / "steel", 2), make_sources(tmp_path / "y" / "brass", 3)
    # An image that both of them pack must not be there twice.
    shutil.copytree(first, tmp_path / "y" / "steel")

    open_parts = build_module.open_parts

    def slow(out: Path, options: dict[str, object]) -> AbstractContextManager[object]:
        monkeypatch.undo()
        packed(first, tmp_path / name, shard_bytes=shard_bytes)
        return open_parts(out, options)

    monkeypatch.setattr(build_module, "open_parts", slow)
    result = packed(second.parent, tmp_path / name, shard_bytes=shard_bytes)
    assert (result.added, result.unchanged) == (3, 2)
    ids = [record.id for record in Archive(tmp_path / name).records]
    assert ids == ["brass/0000", "brass/0001", "brass/0002", "steel/0000", "steel/0001"]


def test_a_mask_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 2)
    (sources / "gt" / "0001.png").unlink()
    (sources / "gt" / "0001.png").symlink_to(tmp_path / "moved.png")
    (skipped,) = packed(sources, tmp_path / "a.h5").skipped
    assert skipped.path == "steel/img/0001.png"
    assert "its mask" in skipped.reason
    assert "No such file" in skipped.reason


FULL = """
import resource, sys
from pathlib import Path
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError
found = plan([Path(sys.argv[1])])
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
try:
    build(found, Path(sys.argv[2]), BuildOptions())
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [20_000, 150_000])
def test_a_full_disk_is_one_error_line(tmp_path: Path, limit: int) -> None:
    """As on a full disk or beyond a quota; HDF5 reports that in several lines, when writing or when closing."""
    sources = make_sources(tmp_path / "steel", 12)
    (tmp_path / "full.py").write_text(FULL.replace("150_000", str(limit)))
    command = [sys.executable, tmp_path / "full.py", sources, tmp_path / "a.h5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.startswith(f"{tmp_path / 'a.h5'} cannot be written (File too large)")
    assert done.stdout.count("\n") == 1
    assert packed(sources, tmp_path / "a.h5").added == 12


def test_two_builds_at_once_are_refused(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "steel", 2)
    (tmp_path / "a.h5.partial").mkdir()
    with (tmp_path / "a.h5.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another build of .*a\.h5"):
            packed(sources, tmp_path / "a.h5")
    assert packed(sources, tmp_path / "a.h5").added == 2

"""The parts of a build: kept in ``OUT.partial/`` while it runs, then merged into the archive.

A new archive appears by one rename, and images are added to it all or none, so readers always find the old or the new one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from pscl_hpc.archive.format import Collection, Row, fingerprint, parse_pool
from pscl_hpc.archive.manifest import ShardEntry, read_manifest, write_manifest
from pscl_hpc.archive.reader import Archive
from pscl_hpc.archive.shard import PositionedFile, Shard, open_shards
from pscl_hpc.archive.writer import ShardWriter
from pscl_hpc.errors import UserError
from pscl_hpc.files import move_file, remove_leftovers, sha256_of, sync_folder
from pscl_hpc.progress import Progress

Pick = tuple[Row, Shard]
"""An image and the shard it is copied from."""


@dataclass
class Parts:
    """The finished parts of a build."""

    folder: Path
    """``OUT.partial/``, beside the archive that is being built."""
    shards: list[Shard] = field(default_factory=list)

    def next_path(self) -> Path:
        """An unused file name for the next part."""
        numbers = [int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.h5")]
        return self.folder / f"part-{max(numbers, default=-1) + 1:06d}.h5"

    def add(self, path: Path) -> None:
        """Add a finished part."""
        self.shards.append(open_shards(path)[0])

    def remove(self) -> None:
        """Delete the folder once the archive is in place."""
        shutil.rmtree(self.folder)
        sync_folder(self.folder.absolute().parent)


@contextmanager
def open_parts(out: Path, options: dict[str, Any]) -> Iterator[Parts]:
    """The parts of an earlier, interrupted build of ``out``, if any; locked inside the block.

    Raises:
        UserError: another build of the archive is running, or the parts were made with other options.
    """
    folder = out.with_name(f"{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some cluster file systems are mounted without locks; a build there cannot be protected.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"another build of {out} is running; wait until it has ended") from error
        _check_options(folder, options)
        remove_leftovers(folder)
        parts = Parts(folder)
        for path in sorted(folder.glob("part-*.h5")):
            try:
                parts.add(path)
            except UserError:
                path.unlink()  # damaged by a power failure: its images are packed again
        yield parts


def _check_options(folder: Path, options: dict[str, Any]) -> None:
    path = folder / "options.json"
    if path.is_file() and any(folder.glob("part-*.h5")):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if before != options:
            raise UserError(
                f"{folder} has parts of a build with other options; use the same options to resume it, or delete that "
                "folder to start over"
            )
    path.write_text(json.dumps(options), encoding="utf-8")


def stored_bytes(row: Row) -> int:
    """Size of an image's pixels before compression."""
    dtype, channels = parse_pool(row.pool)
    return row.height * row.width * channels * (1 if dtype == "uint8" else 2 if dtype == "uint16" else 4)


def merge(
    path: Path,
    picks: Sequence[Pick],
    collections: Sequence[Collection],
    compression: str,
    bar: Progress,
    added_to: str | None = None,
) -> None:
    """Write one file with copies of images of other shards in the given order; ``added_to`` as in ShardWriter."""
    files: dict[Path, PositionedFile] = {}
    with ShardWriter(path, collections, compression, added_to=added_to) as writer:
        for row, shard in picks:
            if shard.path not in files:
                files[shard.path] = PositionedFile(shard.path, shard.stamp)
            writer.copy(row, shard, files[shard.path])
            bar.advance()


def publish(
    out: Path,
    parts: Path,
    picks: Sequence[Pick],
    collections: Sequence[Collection],
    compression: str,
    shard_bytes: int | None,
    old: Archive | None,
    progress: bool,
) -> None:
    """Add ``picks`` to the file ``out``, or as new shards to the folder ``out``.

    Args:
        old: the archive at ``out``, if there is one.
        parts: folder on the file system of ``out`` in which new files are written before they are moved.
        shard_bytes: raw pixels per shard of a folder; None for one file.
    """
    new = parts / "new.h5"
    rows = chain(old.all_rows() if old else (), (row for row, _ in picks))
    united = {**(old.collections if old else {}), **{item.name: item for item in collections}}
    with Progress("writing", len(picks), unit="image", show=progress) as bar:
        if shard_bytes is None and old:
            merge(out, picks, collections, compression, bar, fingerprint(rows, united.values()))
            return
        if shard_bytes is None:
            merge(new, picks, collections, compression, bar)
            move_file(new, out)
            return
        out.mkdir(parents=True, exist_ok=True)
        entries = read_manifest(out).shards if old else []
        for group in _groups(picks, shard_bytes):
            merge(new, group, collections, compression, bar)
            digest = sha256_of(new)
            # Named by content: a build that was killed here makes the same names again when it is resumed.
            name = f"shard-{digest[:16]}.h5"
            entries.append(ShardEntry(name, digest, new.stat().st_size, len(group)))
            move_file(new, out / name)
    # Last, so that the manifest never lists a shard that is not there.
    write_manifest(out, entries, fingerprint(rows, united.values()))


def _groups(picks: Sequence[Pick], limit: int) -> list[list[Pick]]:
    groups: list[list[Pick]] = []
    size = limit
    for pick in picks:
        if size >= limit:
            groups.append([])
            size = 0
        groups[-1].append(pick)
        size += stored_bytes(pick[0])
    return groups or [[]]  # a shard without images still adds new class lists

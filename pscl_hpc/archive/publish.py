"""Putting finished parts in place: one file, or shards and a manifest; never a moment without an archive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pscl_hpc.archive.format import MANIFEST, Collection, Row, parse_pool
from pscl_hpc.archive.manifest import ShardEntry, read_manifest, write_manifest
from pscl_hpc.archive.shard import PositionedFile, Shard
from pscl_hpc.archive.writer import ShardWriter, sync
from pscl_hpc.progress import Progress

Pick = tuple[Row, Shard]
"""An image and the shard it is copied from."""


def stored_bytes(row: Row) -> int:
    """Size of an image's pixels before compression."""
    dtype, channels = parse_pool(row.pool)
    return row.height * row.width * channels * (1 if dtype == "uint8" else 2 if dtype == "uint16" else 4)


def merge(
    path: Path, picks: Sequence[Pick], collections: Sequence[Collection], compression: str, bar: Progress
) -> None:
    """Write one shard of images that lie in other shards, in the given order."""
    files: dict[Path, PositionedFile] = {}
    with ShardWriter(path, collections, compression) as writer:
        for row, shard in picks:
            if shard.path not in files:
                files[shard.path] = PositionedFile(shard)
            writer.copy(row, shard, files[shard.path])
            bar.advance()


def publish_file(
    out: Path,
    scratch: Path,
    picks: Sequence[Pick],
    collections: Sequence[Collection],
    compression: str,
    progress: bool,
) -> None:
    """Replace ``out`` by an archive of ``picks`` in one rename."""
    whole = scratch / "whole.h5"
    with Progress("writing", len(picks), unit="image", show=progress) as bar:
        merge(whole, picks, collections, compression, bar)
    os.replace(whole, out)
    sync(out.absolute().parent)


def publish_folder(
    out: Path,
    scratch: Path,
    picks: Sequence[Pick],
    collections: Sequence[Collection],
    compression: str,
    shard_bytes: int,
    progress: bool,
) -> None:
    """Add shards of new images to a folder; shards already there are immutable, the manifest comes last."""
    out.mkdir(parents=True, exist_ok=True)
    entries = read_manifest(out) if (out / MANIFEST).exists() else []
    with Progress("writing", len(picks), unit="image", show=progress) as bar:
        for group in _groups(picks, shard_bytes):
            shard = scratch / "shard.h5"
            merge(shard, group, collections, compression, bar)
            digest = sha256_of(shard)
            # Named by content: a build that is killed here and goes on later makes the same names again.
            name = f"shard-{digest[:16]}.h5"
            entries.append(ShardEntry(name, digest, shard.stat().st_size, len(group)))
            os.replace(shard, out / name)
    sync(out)
    write_manifest(out, entries)


def _groups(picks: Sequence[Pick], limit: int) -> list[list[Pick]]:
    groups: list[list[Pick]] = []
    size = limit
    for pick in picks:
        if size >= limit:
            groups.append([])
            size = 0
        groups[-1].append(pick)
        size += stored_bytes(pick[0])
    return groups or [[]]  # a shard without images still brings new class lists


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

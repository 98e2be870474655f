"""The manifest of a folder of shards."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pscl_hpc.archive.format import FORMAT, MANIFEST, VERSION
from pscl_hpc.archive.writer import sync
from pscl_hpc.errors import UserError


@dataclass(frozen=True)
class ShardEntry:
    """One line of the manifest."""

    file: str
    """Name of a file in the folder of the manifest."""
    sha256: str
    bytes: int
    images: int


def read_manifest(folder: Path) -> list[ShardEntry]:
    """The shards of a folder; UserError when the manifest is absent, damaged or points elsewhere."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"format {content['format']!r} version {content['version']!r}")
        entries = [ShardEntry(**entry) for entry in content["shards"]]
        for entry in entries:
            types = (type(entry.file), type(entry.sha256), type(entry.bytes), type(entry.images))
            if types != (str, str, int, int):
                raise ValueError("a shard entry has a field of the wrong type")
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no archive: it has no {MANIFEST}; name an .h5 file or a folder made by "
            f"'pscl-hpc archive build --out FOLDER/'"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy or build it again") from error
    for entry in entries:
        shard = folder / entry.file
        if Path(entry.file).name != entry.file or shard.resolve().parent != folder.resolve():
            raise UserError(
                f"{path} names the shard {entry.file!r} outside its folder; move it in or remove it"
            )
        if not shard.is_file():
            raise UserError(
                f"{shard} is missing but listed in {path}; restore it from a copy or build it again"
            )
        if shard.stat().st_size != entry.bytes:
            raise UserError(
                f"{shard} has {shard.stat().st_size} bytes where {path} says {entry.bytes}; copy it again"
            )
    return entries


def write_manifest(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Replace the manifest in one step."""
    content = {"format": FORMAT, "version": VERSION, "shards": [asdict(entry) for entry in entries]}
    temporary = folder / f".{MANIFEST}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sync(temporary)
    os.replace(temporary, folder / MANIFEST)
    sync(folder)

"""The manifest of a folder of shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pscl_hpc.archive.format import FORMAT, MANIFEST, VERSION
from pscl_hpc.errors import UserError
from pscl_hpc.files import write_json


@dataclass(frozen=True)
class ShardEntry:
    """One shard in the manifest."""

    file: str
    """File name, in the folder of the manifest."""
    sha256: str
    bytes: int
    images: int


@dataclass(frozen=True)
class Manifest:
    """The shards of a folder."""

    shards: list[ShardEntry]
    fingerprint: str
    """Of all images, see ``format.fingerprint``."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; UserError when the manifest is missing, damaged or names files elsewhere."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        if content["version"] != VERSION:
            raise UserError(
                f"{path} has archive version {content['version']} but this program reads version {VERSION}; build it again "
                "or use the program version that wrote it"
            )
        fingerprint = content["fingerprint"]
        if type(fingerprint) is not str:
            raise ValueError("the fingerprint is not a text")
        entries = [ShardEntry(**entry) for entry in content["shards"]]
        for entry in entries:
            types = (type(entry.file), type(entry.sha256), type(entry.bytes), type(entry.images))
            if types != (str, str, int, int):
                raise ValueError("a shard entry has a field of the wrong type")
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not an archive: it has no {MANIFEST}; give an .h5 file or a folder made by "
            f"'pscl-hpc archive build --out FOLDER/'"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a backup or build it again") from error
    for entry in entries:
        shard = folder / entry.file
        if Path(entry.file).name != entry.file or shard.resolve().parent != folder.resolve():
            raise UserError(
                f"{path} lists the shard {entry.file!r} outside its folder; move it there or remove it"
            )
        if not shard.is_file():
            raise UserError(
                f"{shard} is listed in {path} but missing; restore it from a backup or build it again"
            )
        if shard.stat().st_size != entry.bytes:
            raise UserError(
                f"{shard} has {shard.stat().st_size} bytes but {entry.bytes} according to {path}; copy it again"
            )
    return Manifest(entries, fingerprint)


def write_manifest(folder: Path, entries: Sequence[ShardEntry], fingerprint: str) -> None:
    """Replace the manifest."""
    shards = [asdict(entry) for entry in entries]
    content = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint, "shards": shards}
    write_json(folder / MANIFEST, content)

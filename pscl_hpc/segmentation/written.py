"""The prediction files of ``evaluate``, and a record of them by which it finds those that it need not keep.

``RUN/predictions/written.json`` holds the SHA-256 of every file that an evaluation wrote, by folder. When a split is
scored again, a file of images that are no longer in it is removed where it still has the recorded bytes. Whatever else
lies there, and a file that was changed since, is not evaluate's to remove.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pscl_hpc.runs import write_json
from pscl_hpc.segmentation.pictures import picture_name, write_file

RECORD = "written.json"
_SUFFIX = ".png"


class WrittenPictures:
    """Files of one evaluation below ``home``; call :meth:`finish` when all are written."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._now: dict[str, dict[str, str]] = {}

    def begin(self, split: str) -> None:
        """Make the folder of a split."""
        (self._home / picture_name(split)).mkdir(parents=True, exist_ok=True)
        self._now.setdefault(picture_name(split), {})

    def write(self, split: str, image_id: str, data: bytes) -> None:
        """Write, or replace, the file of an image of a split that was begun."""
        name = f"{picture_name(image_id)}{_SUFFIX}"
        write_file(self._home / picture_name(split) / name, data)
        self._now[picture_name(split)][name] = hashlib.sha256(data).hexdigest()

    def finish(self) -> None:
        """Remove files of earlier evaluations that this one, of the same splits, did not write; record the others."""
        before = _read(self._home / RECORD)
        for folder, names in self._now.items():
            for name, digest in before.get(folder, {}).items():
                path = self._home / folder / name
                if name not in names and _is_as_written(path, digest):
                    path.unlink()
        write_json(self._home / RECORD, {**before, **self._now})


def _is_as_written(path: Path, digest: str) -> bool:
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _read(path: Path) -> dict[str, dict[str, str]]:
    """The record, without what no evaluation writes: anyone may have written it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        folder: {
            name: digest for name, digest in names.items() if _is_plain(name) and isinstance(digest, str)
        }
        for folder, names in content.items()
        if folder == picture_name(folder) and isinstance(names, dict)
    }


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(_SUFFIX) and name == picture_name(name)

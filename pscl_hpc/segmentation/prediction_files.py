"""The prediction files of ``evaluate``, and a record of them so that outdated ones can be removed.

``RUN/predictions/written.json`` holds the SHA-256 of every file that an evaluation wrote, by folder. When a split is
scored again, files of images that are no longer in it are removed if they still have the recorded content. All other
files in the folder are left alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pscl_hpc.runs import write_json
from pscl_hpc.segmentation.pictures import picture_name, write_file

RECORD = "written.json"
_SUFFIX = ".png"


class PredictionFiles:
    """Files of one evaluation in subfolders of ``home``; call :meth:`finish` after the last one."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._written: dict[str, dict[str, str]] = {}

    def begin(self, split: str) -> None:
        """Make the folder of a split."""
        (self._home / picture_name(split)).mkdir(parents=True, exist_ok=True)
        self._written.setdefault(picture_name(split), {})

    def write(self, split: str, image_id: str, data: bytes) -> None:
        """Write, or replace, the file of an image; :meth:`begin` the split first."""
        folder, name = picture_name(split), f"{picture_name(image_id)}{_SUFFIX}"
        write_file(self._home / folder / name, data)
        self._written[folder][name] = hashlib.sha256(data).hexdigest()

    def finish(self) -> None:
        """Remove outdated files of the same splits and write the record."""
        before = _read(self._home / RECORD)
        for folder, names in self._written.items():
            for name, digest in before.get(folder, {}).items():
                path = self._home / folder / name
                if name not in names and _is_unchanged(path, digest):
                    path.unlink()
        write_json(self._home / RECORD, {**before, **self._written})


def _is_unchanged(path: Path, digest: str) -> bool:
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _read(path: Path) -> dict[str, dict[str, str]]:
    """The valid entries of a record, which may have been edited: only files directly in folders of splits."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        folder: {
            name: digest
            for name, digest in names.items()
            if isinstance(digest, str) and name == f"{picture_name(name.removesuffix(_SUFFIX))}{_SUFFIX}"
        }
        for folder, names in content.items()
        if folder == picture_name(folder) and isinstance(names, dict)
    }

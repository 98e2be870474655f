"""``splits.json``: classes, splits and reference images of a dataset folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pscl_hpc.archive.format import Collection
from pscl_hpc.errors import UserError

SPLITS_FILE = "splits.json"
_SPLITS = ("train", "val", "test")
_KEYS = ("classes", "background", "ignore_classes", "references", *_SPLITS)
_OTHER_NAMES = {"valid": "val", "validation": "val", "dev": "val", "ignore": "ignore_classes"}


@dataclass(frozen=True)
class Splits:
    """The content of one ``splits.json``.

    Keys read: ``classes`` (names in index order), ``background``, ``ignore_classes``, ``references`` and, as
    lists of file names, ``train``, ``val`` and every key that begins with ``test``. Others are notes, but one that is
    almost one of these is refused: the images of a mistyped ``test`` would be trained on.
    """

    classes: tuple[str, ...]
    background: int
    ignore_classes: tuple[int, ...]
    references: tuple[str, ...]
    """Stems."""
    files: dict[str, str]
    """File name -> split."""

    def split_of(self, name: str) -> str:
        """The split of an image by its name relative to the image folder, or by its bare file name."""
        return self.files.get(name, self.files.get(PurePosixPath(name).name, ""))

    def missing(self, names: set[str]) -> list[str]:
        """Listed files that are not among ``names``."""
        return sorted(name for name in self.files if PurePosixPath(name).name not in names)


def read_splits(path: Path) -> Splits:
    """Parse a ``splits.json``; UserError names the file and the key at fault."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); correct it or remove it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object with keys such as classes, train, val and test")
    for key in content:
        if near := meant(key, _KEYS):
            raise UserError(
                f"{path} has the key {key!r}, which is not read; did you mean '{near}'? If not, give it another name"
            )
    files: dict[str, str] = {}
    for split in content:
        if split in ("train", "val") or split.startswith("test"):
            for name in _list(path, content, split, str):
                if name in files:
                    raise UserError(
                        f"{path} lists {name} in {files[name]} and in {split}; keep it in one split"
                    )
                files[name] = split
    references = _list(path, content, "references", str)
    for name in references:
        if files.get(name, "train") != "train":
            raise UserError(f"{path} lists {name} as a reference and in {files[name]}; use a training image")
    background = content.get("background", 0)
    if not isinstance(background, int):
        raise UserError(f"{path}: background must be a class index, not {background!r}")
    splits = Splits(
        classes=tuple(_list(path, content, "classes", str)),
        background=background,
        ignore_classes=tuple(_list(path, content, "ignore_classes", int)),
        references=tuple(str(PurePosixPath(name).with_suffix("")) for name in references),
        files=files,
    )
    try:
        Collection("check", splits.classes, splits.background, splits.ignore_classes)
    except ValueError as error:
        raise UserError(
            f"{path}: {str(error).removeprefix('collection check: ')}; correct the class list"
        ) from error
    return splits


def meant(name: str, known: Sequence[str] = _SPLITS) -> str:
    """The known name that an unknown one seems to stand for; empty when it is known, or unlike all of them."""
    if name in known or name.startswith("test"):
        return ""
    plain = name.strip().lower()
    other = _OTHER_NAMES.get(plain, "test" if plain.startswith("test") else "")
    if other in known:
        return other
    return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.75)), "")


def _list(path: Path, content: dict[str, Any], key: str, kind: type) -> list[Any]:
    values = content.get(key, [])
    if not isinstance(values, list) or any(not isinstance(value, kind) for value in values):
        raise UserError(f"{path}: {key} must be a list of {'names' if kind is str else 'class indices'}")
    return values

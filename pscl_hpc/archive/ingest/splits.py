"""``splits.json``: classes, splits and reference images of a dataset folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.ingest.masks import parse_mask_values
from pscl_hpc.errors import UserError

SPLITS_FILE = "splits.json"
_SPLITS = ("train", "val", "test")
_KEYS = ("classes", "background", "ignore_classes", "references", "mask_values", *_SPLITS)
_OTHER_NAMES = {"valid": "val", "validation": "val", "dev": "val", "ignore": "ignore_classes"}


@dataclass(frozen=True)
class Splits:
    """The content of one ``splits.json``.

    Keys: ``classes`` (names in index order), ``background``, ``ignore_classes``, ``references`` and, as lists of file
    names, ``train``, ``val`` and every key that begins with ``test``. Other keys are ignored, except that one similar
    to these is an error: the images of a mistyped ``test`` would be used for training.
    """

    classes: tuple[str, ...] = ()
    background: int = 0
    ignore_classes: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    """As listed."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File name in Unicode NFC -> split."""
    mask_values: Mapping[int, str] = field(default_factory=dict)
    """Value in the mask files -> class name or ``ignore``; empty if the values are the class indices."""

    def split_of(self, name: str) -> str:
        """The split of an image, listed by its path in the image folder or by its file name alone."""
        name = nfc(name)
        return self.files.get(name, self.files.get(PurePosixPath(name).name, ""))

    def lists(self, name: str) -> bool:
        """Whether an image is listed with its suffix, in a split or as a reference."""
        names = (nfc(name), PurePosixPath(nfc(name)).name)
        return any(one in self.files or one in self.references for one in names)

    def missing(self, images: Sequence[str]) -> list[str]:
        """Listed files that are not among ``images`` (paths in the image folder)."""
        known = {nfc(name) for image in images for name in (image, PurePosixPath(image).name)}
        return sorted(name for name in self.files if name not in known)


def nfc(name: str) -> str:
    """A name in Unicode NFC; macOS writes file names in NFD."""
    return normalize("NFC", name)


def find_listed(name: str, images: Sequence[str]) -> list[str]:
    """The images (paths in the image folder) that match ``name`` by path or else by file name, with or without
    suffix."""
    for known in (PurePosixPath, lambda image: PurePosixPath(PurePosixPath(image).name)):
        found = [
            image
            for image in images
            if nfc(name) in map(nfc, (str(known(image)), str(known(image).with_suffix(""))))
        ]
        if found:
            return found
    return []


def check_classes(names: Sequence[str], where: str) -> None:
    """UserError unless all class names are different and not empty."""
    for name in names:
        if not name.strip() or names.count(name) > 1:
            problem = f"contains {name!r} twice" if name.strip() else "contains an empty name"
            raise UserError(f"{where} {problem}; give each class a different name")


def read_splits(path: Path) -> Splits:
    """Parse a ``splits.json``; UserError names the file and the wrong key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, _ in pairs:
            if sum(other == key for other, _ in pairs) > 1:
                raise UserError(f"{path} has the key {key!r} twice; keep one of them")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); correct it or remove it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a JSON object with keys such as classes, train, val and test")
    for key in content:
        if near := closest_key(key, _KEYS):
            raise UserError(f"{path} has the unknown key {key!r}; did you mean '{near}'? If not, rename it")
    files: dict[str, str] = {}
    for split in content:
        if split in ("train", "val") or split.startswith("test"):
            for name in map(nfc, _list(path, content, split, str)):
                if name in files:
                    raise UserError(
                        f"{path} lists {name} in {files[name]} and in {split}; keep it in one split"
                    )
                files[name] = split
    references = [nfc(name) for name in _list(path, content, "references", str)]
    for name in references:
        for listed in find_listed(name, list(files)):
            if files[listed] != "train":
                raise UserError(
                    f"{path} lists {name} as a reference but in {files[listed]}; a reference must be a training image"
                )
    background = content.get("background", 0)
    if type(background) is not int:
        raise UserError(f"{path}: background must be a class index, not {background!r}")
    classes = _list(path, content, "classes", str)
    check_classes(classes, f"{path}: classes")
    values = content.get("mask_values", {})
    if not isinstance(values, dict):
        raise UserError(f'{path}: mask_values must be an object such as {{"0": "matrix", "255": "carbide"}}')
    splits = Splits(
        classes=tuple(classes),
        background=background,
        ignore_classes=tuple(_list(path, content, "ignore_classes", int)),
        references=tuple(references),
        files=files,
        mask_values=parse_mask_values(list(values.items()), f"{path}: mask_values"),
    )
    try:
        Collection("check", splits.classes, splits.background, splits.ignore_classes)
    except ValueError as error:
        raise UserError(
            f"{path}: {str(error).removeprefix('collection check: ')}; correct the class list"
        ) from error
    return splits


def closest_key(name: str, known: Sequence[str] = _SPLITS) -> str:
    """The known name that an unknown one resembles; empty if it is known or resembles none."""
    if name in known or name.startswith("test"):
        return ""
    plain = name.strip().lower()
    other = _OTHER_NAMES.get(plain, "test" if plain.startswith("test") else "")
    if other in known:
        return other
    return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.75)), "")


def _list(path: Path, content: dict[str, Any], key: str, kind: type) -> list[Any]:
    values = content.get(key, [])
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise UserError(f"{path}: {key} must be a list of {'names' if kind is str else 'class indices'}")
    return values

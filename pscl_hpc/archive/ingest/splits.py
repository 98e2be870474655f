"""``splits.json``: classes, splits and reference images of a dataset folder."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.ingest.mask_values import IGNORE, Key, parse_mask_values
from pscl_hpc.errors import UserError
from pscl_hpc.files import nfc

SPLITS_FILE = "splits.json"
SPLIT_NAMES = ("train", "val", "test")
_KEYS = ("classes", "background", "ignore_classes", "references", "mask_values", "scribbles", *SPLIT_NAMES)
_OTHER_NAMES = {"valid": "val", "validation": "val", "dev": "val", "ignore": "ignore_classes"}


@dataclass(frozen=True)
class Splits:
    """The content of one ``splits.json``.

    Keys: ``classes`` (names in index order, or name -> value or colour in the masks), ``mask_values``, ``scribbles``,
    ``background``, ``ignore_classes``, ``references`` and, as lists of file names, ``train``, ``val`` and every key
    that begins with ``test``. Other keys are ignored, except that one similar to these is an error: the images of a
    mistyped ``test`` would be used for training.
    """

    classes: tuple[str, ...] = ()
    background: int = 0
    ignore_classes: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    """As listed."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File name in Unicode NFC -> split."""
    mask_values: Mapping[Key, str] = field(default_factory=dict)
    """Value or colour in the mask files -> class name or ``ignore``; empty if the values are the class indices."""
    scribbles: bool = False
    """0, and what is outside all shapes, is not annotated."""

    def match(self, images: Sequence[str], base: str) -> Listed:
        """Find the listed images.

        Args:
            images: paths in the image folder.
            base: name of the image folder, which names may begin with.

        Raises:
            UserError: an image is listed in two splits under different names.
        """
        known = _Known(images, base)
        best: dict[str, tuple[int, str, str]] = {}
        missing = []
        exactly = set()
        for name, split in self.files.items():
            found = known.find(name)
            if not found:
                missing.append(name)
            for image, level in found.items():
                if level < _WITHOUT_SUFFIX:
                    exactly.add(image)
                other = best.setdefault(image, (level, split, name))
                if other[0] == level and other[1] != split:
                    raise UserError(
                        f"{SPLITS_FILE} lists {image} in {other[1]} as {other[2]!r} and in {split} as {name!r}; keep one"
                    )
                if level < other[0]:
                    best[image] = (level, split, name)
        references = []
        for wanted in self.references:
            found = known.find(wanted)
            nearest = tuple(image for image, level in found.items() if level == min(found.values()))
            references.append((wanted, nearest))
            exactly.update(image for image in nearest if found[image] < _WITHOUT_SUFFIX)
        splits = {image: split for image, (_, split, _) in best.items()}
        return Listed(splits, frozenset(exactly), tuple(references), tuple(sorted(missing)))


@dataclass(frozen=True)
class Listed:
    """The images of a folder that ``splits.json`` lists."""

    split: Mapping[str, str]
    exactly: frozenset[str]
    """Those listed with their suffix, in a split or as a reference."""
    references: tuple[tuple[str, tuple[str, ...]], ...]
    """Each reference as listed, and the images that match."""
    missing: tuple[str, ...]
    """Names without an image."""


class _Known:
    """Images by path and by file name, with or without suffix, exactly and in lower case."""

    def __init__(self, images: Sequence[str], base: str) -> None:
        self._base = nfc(base)
        self._levels: list[dict[str, list[str]]] = [{} for _ in range(2 * len(_FORMS))]
        for image in images:
            path = PurePosixPath(nfc(image))
            for level, form in enumerate(_FORMS):
                key = form(path)
                for fold, text in ((0, key), (1, key.casefold())):
                    self._levels[2 * level + fold].setdefault(text, []).append(image)

    def find(self, name: str) -> dict[str, int]:
        """The images that a name means, and how exactly each matches (0 is best).

        A name without folders means the images of that name in all folders.
        """
        plain = nfc(name).replace("\\", "/").removeprefix("./")
        for text in dict.fromkeys((plain, plain.removeprefix(f"{self._base}/"))):
            for levels in ((0, 2), (1, 3), (4, 6), (5, 7)):
                found: dict[str, int] = {}
                for level in levels:
                    for image in self._levels[level].get(text.casefold() if level % 2 else text, ()):
                        found.setdefault(image, level)
                if found:
                    return found
        return {}


_FORMS: tuple[Callable[[PurePosixPath], str], ...] = (
    str,
    lambda path: path.name,
    lambda path: str(path.with_suffix("")),
    lambda path: path.with_suffix("").name,
)
_WITHOUT_SUFFIX = 4
"""From this level on names are compared without their suffix."""


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
    values = content.get("mask_values", {})
    if not isinstance(values, dict):
        raise UserError(f'{path}: mask_values must be an object such as {{"0": "matrix", "255": "carbide"}}')
    if isinstance(content.get("classes"), dict):
        if values:
            raise UserError(
                f"{path}: classes has values or colours, and so has mask_values; keep one of them"
            )
        content, values = _named_values(content)
    classes = _list(path, content, "classes", str)
    check_classes(classes, f"{path}: classes")
    scribbles = content.get("scribbles", False)
    if type(scribbles) is not bool:
        raise UserError(f"{path}: scribbles must be true or false, not {scribbles!r}")
    splits = Splits(
        classes=tuple(classes),
        background=background,
        ignore_classes=tuple(_list(path, content, "ignore_classes", int)),
        references=tuple(references),
        files=files,
        mask_values=parse_mask_values(list(values.items()), f"{path}: mask_values"),
        scribbles=scribbles,
    )
    try:
        Collection("check", splits.classes, splits.background, splits.ignore_classes)
    except ValueError as error:
        raise UserError(
            f"{path}: {str(error).removeprefix('collection check: ')}; correct the class list"
        ) from error
    return splits


def closest_key(name: str, known: Sequence[str] = SPLIT_NAMES) -> str:
    """The known name that an unknown one resembles; empty if it is known or resembles none."""
    if name in known or name.startswith("test"):
        return ""
    plain = name.strip().lower()
    other = _OTHER_NAMES.get(plain, "test" if plain.startswith("test") else "")
    if other in known:
        return other
    return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.75)), "")


def _named_values(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``classes`` as an object: the content with a list instead, and the values of the masks if they are no indices.

    ``{"matrix": 0, "carbide": 255}``, ``{"matrix": "#000000"}`` or, as nnU-Net wrote it, ``{"0": "matrix"}``.
    """
    given: dict[str, Any] = content["classes"]
    if given and all(isinstance(name, str) and re.fullmatch(r"\d+", value) for value, name in given.items()):
        values = dict(given)
    else:
        values = {str(value): name for name, value in given.items()}
        if len(values) < len(given):
            values = {f"{name}={value}": name for name, value in given.items()}  # refused, and named
    indices = [str(index) for index in range(len(values))]
    if sorted(values) == sorted(indices):
        return content | {"classes": [values[index] for index in indices]}, {}
    names = [name for name in values.values() if name != IGNORE]
    return content | {"classes": list(dict.fromkeys(names))}, values


def _list(path: Path, content: dict[str, Any], key: str, kind: type) -> list[Any]:
    values = content.get(key, [])
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise UserError(f"{path}: {key} must be a list of {'names' if kind is str else 'class indices'}")
    return values

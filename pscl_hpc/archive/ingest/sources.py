"""From image files and folders to a list of images to pack.

A *dataset folder* contains ``img/`` or ``images/`` and optionally ``gt/``, ``masks/`` or ``labels/`` (in upper or lower
case) with masks of the same stem, and ``splits.json``. A source may be a dataset folder, a folder of dataset folders, or
any other folder of images, which is one collection without masks. A collection has the name of its folder. Images
elsewhere in such a folder are listed as skipped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.folders import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    Unread,
    beside_dataset,
    beside_datasets,
    by_stem,
    check_no_masks,
    images_under,
    readable,
    subfolder,
)
from pscl_hpc.archive.ingest.images import IMAGE_SUFFIXES
from pscl_hpc.archive.ingest.masks import check_equal
from pscl_hpc.archive.ingest.metadata_csv import NUMBERS, TEXTS, MetadataFile
from pscl_hpc.archive.ingest.splits import SPLITS_FILE, Splits, check_classes, find_listed, read_splits
from pscl_hpc.errors import UserError


@dataclass(frozen=True)
class Item:
    """One image file to pack."""

    path: Path
    source: str
    """``path`` relative to the parent of the folder that the user gave."""
    dataset: str
    stem: str
    mask: Path | None = None
    split: str = ""
    specimen: str = ""
    production_batch: str = ""
    alloy: str = ""
    magnification: float | None = None
    um_per_pixel: float | None = None
    same_named: tuple[Path, ...] = ()
    """All masks with its name if there are several; ``mask`` is the last of them."""

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.stem}"


@dataclass(frozen=True)
class Skipped:
    """A file, or a folder of images, that was not packed, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The images that a build will pack, in a fixed order."""

    items: tuple[Item, ...]
    collections: dict[str, Collection]
    skipped: tuple[Skipped, ...]


def plan(sources: Sequence[Path], *, metadata: Path | None = None, classes: Sequence[str] = ()) -> Plan:
    """List the images under ``sources``, sorted by id, with masks, splits and metadata.

    Args:
        sources: image files or folders.
        metadata: a CSV file (see :mod:`.metadata_csv`).
        classes: class names of datasets that have masks but no ``splits.json``.

    Raises:
        UserError: a source does not exist or has no image, masks would be packed as images, class names are missing or
            not needed, or ``splits.json`` or the CSV file is wrong.
    """
    check_classes(classes, "--classes")
    finder = _Finder(tuple(classes))
    for source in sources:
        finder.add(source)
    if not finder.items:
        raise UserError(
            f"there is no image ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(map(str, sources)) or 'no source'}"
        )
    items = sorted(finder.items, key=lambda item: (item.id, item.source))
    collections = finder.collections
    if metadata is not None:
        lines = MetadataFile.read(metadata)
        items, collections = _apply_metadata(items, collections, lines, list(sources), tuple(classes))
    unique: dict[str, Item] = {}
    skipped = list(finder.skipped)
    for item in items:
        if item.id in unique:
            skipped.append(
                Skipped(item.source, f"{unique[item.id].source} has the same image id {item.id}; rename one")
            )
            continue
        try:
            if item.same_named:
                check_equal(item.same_named)
            unique[item.id] = item
        except Unreadable as error:
            skipped.append(Skipped(item.source, readable(str(error))))
    # They may have been read through another source or the CSV file.
    read = {os.path.abspath(path) for item in items for path in (item.path, item.mask) if path is not None}
    left = (unread.without(read) for unread in finder.unread)
    skipped += [Skipped(str(unread.folder), str(unread)) for unread in left if unread]
    if classes and not any(item.mask for item in items):
        raise UserError(
            f"--classes is given but no image has a mask; put masks of the same names into gt/ beside img/ in "
            f"{', '.join(map(str, sources))}, or remove --classes"
        )
    for item in unique.values():
        if item.mask is not None and not collections[item.dataset].classes:
            raise UserError(
                f"{item.mask} is a mask but {item.dataset} has no class names; give them with --classes a,b"
            )
    return Plan(tuple(unique.values()), collections, tuple(skipped))


class _Finder:
    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._roots: dict[str, Path] = {}
        self.items: list[Item] = []
        self.skipped: list[Skipped] = []
        self.unread: list[Unread] = []
        self.collections: dict[str, Collection] = {}

    def add(self, source: Path) -> None:
        if source.is_file():
            folder = source.absolute().parent
            self._collect(folder, [source], folder, folder, {}, Splits())
        elif not source.is_dir():
            raise UserError(f"{source} does not exist; give image files or folders of images")
        elif subfolder(source, IMAGE_FOLDERS):
            self._dataset(source, source)
        else:
            inner = [
                path for path in sorted(source.iterdir()) if path.is_dir() and subfolder(path, IMAGE_FOLDERS)
            ]
            for folder in inner:
                self._dataset(folder, source)
            if inner:
                self.unread += beside_datasets(source, inner)
            else:
                images = images_under(source)
                check_no_masks(source, images)
                self._collect(source, images, source, source, {}, Splits())

    def _dataset(self, folder: Path, root: Path) -> None:
        images, masks = subfolder(folder, IMAGE_FOLDERS), subfolder(folder, MASK_FOLDERS)
        assert images is not None
        file = folder / SPLITS_FILE
        splits = read_splits(file) if file.is_file() else Splits()
        self._collect(images, images_under(images), root, folder, by_stem(masks) if masks else {}, splits)
        self.unread += beside_dataset(folder, images, masks)

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped.append(Skipped(readable(str(path)), reason))

    def _collect(
        self,
        base: Path,
        paths: Sequence[Path],
        root: Path,
        folder: Path,
        masks: Mapping[str, tuple[Path, ...]],
        splits: Splits,
    ) -> None:
        """Add the images ``paths`` under ``base`` as the collection named after ``folder``."""
        name = _plain(folder.resolve().name)
        if self._roots.setdefault(name, base.resolve()) != base.resolve():
            raise UserError(
                f"{base} and {self._roots[name]} would both be the dataset {name!r}; rename one of these folders"
            )
        stems = {}
        for path in paths:
            relative = path.absolute().relative_to(base.absolute())
            stem = stems[relative.as_posix()] = relative.with_suffix("").as_posix()
            below_root = path.absolute().relative_to(root.absolute()).as_posix()
            same_named = masks.get(stem, ())
            self.items.append(
                Item(
                    path=path,
                    source=readable(f"{root.resolve().name}/{below_root}"),
                    dataset=name,
                    stem=_plain(stem),
                    mask=same_named[-1] if same_named else None,
                    same_named=same_named if len(same_named) > 1 else (),
                    split=splits.split_of(relative.as_posix()),
                )
            )
        for stem in sorted(masks.keys() - set(stems.values())):
            self._skip(masks[stem][-1], "a mask without an image of the same name; rename one of them")
        references = self._references(base, splits, stems)
        for missing in splits.missing(list(stems)):
            fix = f"correct the name and its suffix in {SPLITS_FILE}"
            self._skip(base / missing, f"listed in {SPLITS_FILE} but not found; {fix}")
        self.collections[name] = Collection(
            name=name,
            classes=splits.classes or (self._classes if masks else ()),
            background=splits.background,
            ignore_classes=splits.ignore_classes,
            references=tuple(f"{name}/{_plain(stem)}" for stem in references),
        )

    def _references(self, base: Path, splits: Splits, images: dict[str, str]) -> list[str]:
        """Stems of the references; one that is not in ``images`` (path -> stem) may be in the archive already."""
        stems = []
        for wanted in splits.references:
            found = find_listed(wanted, list(images))
            if len(found) > 1:
                reason = f"a reference in {SPLITS_FILE} that matches {len(found)} images; add its folder"
                self._skip(base / wanted, reason)
                continue
            if not found:
                reason = f"a reference in {SPLITS_FILE} but not found; correct the name in {SPLITS_FILE}"
                self._skip(base / wanted, reason)
            stems.append(images[found[0]] if found else str(Path(wanted).with_suffix("")))
        return stems


def _apply_metadata(
    items: list[Item],
    collections: dict[str, Collection],
    metadata: MetadataFile,
    sources: list[Path],
    classes: tuple[str, ...],
) -> tuple[list[Item], dict[str, Collection]]:
    """Apply the lines of a CSV file to their images."""
    roots = [metadata.path.parent, *(path if path.is_dir() else path.parent for path in sources)]
    changed = {item.path: item for item in items}
    by_name: dict[str, list[tuple[str, Path]]] = {}
    for item in items:
        by_name.setdefault(item.path.name, []).append((item.source, item.path))
    collections = dict(collections)
    images = [metadata.match(line, by_name) for line in metadata.lines]
    metadata.check_consistent(images)
    for path, line in zip(images, metadata.lines, strict=True):
        item = changed[path]
        home = collections[item.dataset]
        if line.text("dataset"):
            item = replace(item, dataset=_plain(line.text("dataset")))
        known = collections.get(item.dataset, Collection(item.dataset))
        if line.text("mask"):
            item = replace(item, mask=metadata.inside(line, "mask", roots), same_named=())
        if item.mask is not None and not known.classes:
            # A mask from the dataset folder has its classes; one from the CSV file has those of --classes.
            classed = replace(home, name=item.dataset, references=known.references)
            known = classed if home.classes else replace(known, classes=classes)
        fields: dict[str, Any] = {name: line.text(name) for name in TEXTS if line.text(name)}
        fields |= {name: line.number(name) for name in NUMBERS if line.text(name)}
        item = replace(item, **fields)
        if line.flag("reference") and item.id not in known.references:
            known = replace(known, references=(*known.references, item.id))
        changed[path] = item
        collections[item.dataset] = known
    annotated = sorted(changed.values(), key=lambda item: (item.id, item.source))
    used = {item.dataset for item in annotated}
    return annotated, {name: item for name, item in collections.items() if name in used}


def _plain(name: str) -> str:
    """A name without folders and control characters, for ids and for file names made from them."""
    name = re.sub(r"#(?=\d+$)", "_", readable(name))  # "#0" at the end of an id is a page number
    return re.sub(r"[\x00-\x1f]", "_", name.replace("/", "__")) or "images"

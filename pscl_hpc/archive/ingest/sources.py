"""From image files and folders to a list of images to pack, with masks, splits and metadata.

A source may be a dataset folder (see :mod:`.layout`), a folder of dataset folders, or any other folder of images. A
collection has the name of its folder. What is not read is listed as skipped.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.ingest.folders import IMAGE_FOLDERS, MASK_FOLDERS, Unread, readable, subfolder
from pscl_hpc.archive.ingest.images import IMAGE_SUFFIXES
from pscl_hpc.archive.ingest.items import Item, Skipped, unique_items
from pscl_hpc.archive.ingest.layout import Layout, find_layouts, layout_of
from pscl_hpc.archive.ingest.masks import check_palettes, class_indices, classes_of_values
from pscl_hpc.archive.ingest.metadata_csv import NUMBERS, TEXTS, MetadataFile
from pscl_hpc.archive.ingest.splits import SPLITS_FILE, Splits, check_classes, find_listed, nfc, read_splits
from pscl_hpc.errors import UserError


@dataclass(frozen=True)
class Plan:
    """The images that a build will pack, in a fixed order."""

    items: tuple[Item, ...]
    collections: dict[str, Collection]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    """How masks and splits were found, one sentence per collection."""


def plan(
    sources: Sequence[Path],
    *,
    metadata: Path | None = None,
    classes: Sequence[str] = (),
    mask_values: Mapping[int, str] | None = None,
    pair: tuple[Path, Path] | None = None,
) -> Plan:
    """List the images under ``sources``, sorted by id, with masks, splits and metadata.

    Args:
        sources: image files or folders.
        metadata: a CSV file (see :mod:`.metadata_csv`).
        classes: class names of datasets that have masks but no ``splits.json``.
        mask_values: value in the masks -> class name or ``ignore``, for datasets whose ``splits.json`` has none.
        pair: a folder of images and the folder of their masks, in addition to ``sources``.

    Raises:
        UserError: a source does not exist or has no image, masks would be packed as images, class names are missing or
            not needed, or ``splits.json`` or the CSV file is wrong.
    """
    values = mask_values or {}
    classes = tuple(classes) or classes_of_values(values)
    check_classes(classes, "--classes")
    finder = _Finder(classes, values)
    for source in sources:
        finder.add(source)
    if pair is not None:
        finder.add_layout(layout_of(*pair), pair[0].absolute().parent)
    if not finder.items:
        left = "; ".join(str(unread) for unread in finder.unread)
        places = [*sources, *(pair or ())]
        raise UserError(
            f"there is no image ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(map(str, places)) or 'no source'}"
            f"{f' ({left})' if left else ''}"
        )
    items = sorted(finder.items, key=lambda item: (item.id, item.source))
    collections = finder.collections
    if metadata is not None:
        lines = MetadataFile.read(metadata)
        roots = [*sources, *(pair or ())]
        items, collections = _apply_metadata(items, collections, lines, roots, finder.defaults)
    skipped = list(finder.skipped)
    unique = unique_items(items, skipped)
    # They may have been read through another source or the CSV file.
    read = {os.path.abspath(path) for item in items for path in (item.path, item.mask) if path is not None}
    left_out = (unread.without(read) for unread in finder.unread)
    skipped += [Skipped(str(unread.folder), str(unread)) for unread in left_out if unread]
    if classes and not any(item.mask for item in items):
        raise UserError(
            f"--classes is given but no image has a mask; put masks of the same names into gt/ beside img/ in "
            f"{', '.join(map(str, sources))}, name the folders with --images and --masks, or remove --classes"
            f"{''.join(f' ({item.path}: {item.reason})' for item in skipped[:2])}"
        )
    masks: dict[str, list[Path]] = {}
    for item in unique.values():
        if item.mask is not None:
            masks.setdefault(item.dataset, []).append(item.mask)
            if not collections[item.dataset].classes:
                raise UserError(
                    f"{item.mask} is a mask but {item.dataset} has no class names; give them with --classes a,b"
                )
    for paths in masks.values():
        check_palettes(paths)
    found = [
        replace(
            item, mask_values=tuple(class_indices(dict(item.mask_names), collections[item.dataset]).items())
        )
        if item.mask is not None and item.mask_names
        else item
        for item in unique.values()
    ]
    return Plan(tuple(found), collections, tuple(skipped), tuple(finder.notes))


class _Finder:
    def __init__(self, classes: tuple[str, ...], values: Mapping[int, str]) -> None:
        self.defaults = (classes, values)
        self._roots: dict[str, Path] = {}
        self.items: list[Item] = []
        self.skipped: list[Skipped] = []
        self.unread: list[Unread] = []
        self.notes: list[str] = []
        self.collections: dict[str, Collection] = {}

    def add(self, source: Path) -> None:
        if source.is_file():
            folder = source.absolute().parent
            self.add_layout(
                Layout(folder, folder, {source.name: folder / source.name}, {}, (), {}, ""),
                folder,
                file=source,
            )
        elif not source.is_dir():
            raise UserError(f"{source} does not exist; give image files or folders of images")
        else:
            layouts, unread = find_layouts(source)
            self.unread += unread
            for layout in layouts:
                self.add_layout(layout, source)
            home = source.absolute().parent
            if source.name.lower() in IMAGE_FOLDERS and (
                subfolder(home, MASK_FOLDERS) or (home / SPLITS_FILE).is_file()
            ):
                self.notes.append(
                    f"{source} is packed without the masks and splits beside it; to use them, give {home}"
                )

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped.append(Skipped(readable(str(path)), reason))

    def add_layout(self, layout: Layout, root: Path, *, file: Path | None = None) -> None:
        """Add the images of a collection; ``root`` is the folder that the user gave, or that of the given ``file``."""
        name, base = _plain(layout.folder.resolve().name), layout.base
        if self._roots.setdefault(name, base.resolve()) != base.resolve():
            raise UserError(
                f"{base} and {self._roots[name]} would both be the dataset {name!r}; rename one of these folders"
            )
        splits_file = layout.folder / SPLITS_FILE
        splits = read_splits(splits_file) if file is None and splits_file.is_file() else Splits()
        classes, values = self.defaults
        names = dict(splits.mask_values or values)
        by_folder = layout.splits if not splits.files else {}
        stems = {}
        for relative, path in layout.images.items():
            stem = stems[relative] = Path(relative).with_suffix("").as_posix()
            below_root = path.absolute().relative_to(root.absolute()).as_posix()
            masks = layout.masks.get(relative, ())
            self.items.append(
                Item(
                    path=file or path,
                    source=readable(f"{root.resolve().name}/{below_root}"),
                    dataset=name,
                    stem=_plain(stem),
                    mask=masks[-1] if masks else None,
                    same_named=masks if len(masks) > 1 else (),
                    split=splits.split_of(relative) or by_folder.get(relative, ""),
                    listed=splits.lists(relative),
                    mask_names=tuple(names.items()) if masks else (),
                )
            )
        for path in layout.strays:
            self._skip(path, "a mask without an image of the same name; rename one of them")
        references = self._references(base, splits, stems)
        for missing in splits.missing(list(stems)):
            fix = f"correct the name and its suffix in {SPLITS_FILE}"
            self._skip(base / missing, f"listed in {SPLITS_FILE} but not found; {fix}")
        self.unread += layout.unread
        self.notes += _notes(name, layout, by_folder)
        default = classes_of_values(splits.mask_values) or classes
        self.collections[name] = Collection(
            name=name,
            classes=splits.classes or (default if layout.masks or layout.strays else ()),
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
    defaults: tuple[tuple[str, ...], Mapping[int, str]],
) -> tuple[list[Item], dict[str, Collection]]:
    """Apply the lines of a CSV file to their images."""
    roots = [metadata.path.parent, *(path if path.is_dir() else path.parent for path in sources)]
    changed = {item.path: item for item in items}
    by_name: dict[str, list[tuple[str, Path]]] = {}
    for item in items:
        by_name.setdefault(nfc(item.path.name), []).append((item.source, item.path))
    classes, values = defaults
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
            names = item.mask_names or tuple(values.items())
            mask = metadata.inside(line, "mask", roots)
            item = replace(item, mask=mask, same_named=(), mask_names=names)
        if item.mask is not None and not known.classes:
            # A mask from the dataset folder has its classes; one from the CSV file has those of --classes.
            classed = replace(home, name=item.dataset, references=known.references)
            known = classed if home.classes else replace(known, classes=classes)
        fields: dict[str, Any] = {name: line.text(name) for name in TEXTS if line.text(name)}
        fields |= {name: line.number(name) for name in NUMBERS if line.text(name)}
        item = replace(item, listed=True, **fields)
        if line.flag("reference") and item.id not in known.references:
            known = replace(known, references=(*known.references, item.id))
        changed[path] = item
        collections[item.dataset] = known
    annotated = sorted(changed.values(), key=lambda item: (item.id, item.source))
    used = {item.dataset for item in annotated}
    return annotated, {name: item for name, item in collections.items() if name in used}


def _notes(name: str, layout: Layout, splits: Mapping[str, str]) -> list[str]:
    notes = []
    if layout.rule:
        count = f"{len(layout.masks)} of {len(layout.images)} images have a mask"
        notes.append(f"{name}: {count} ({layout.rule})")
    if splits:
        counts = Counter(splits.values())
        shown = ", ".join(f"{split} {count}" for split, count in counts.items())
        notes.append(f"{name}: splits are taken from the folders: {shown}")
    return [readable(note) for note in notes]


def _plain(name: str) -> str:
    """A name without folders and control characters, for ids and for file names made from them."""
    name = re.sub(r"#(?=\d+$)", "_", nfc(readable(name)))  # "#0" at the end of an id is a page number
    return re.sub(r"[\x00-\x1f]", "_", name.replace("/", "__")) or "images"

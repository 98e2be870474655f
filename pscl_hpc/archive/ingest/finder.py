"""The images, masks, splits and classes under the sources that a user names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.ingest.folders import IMAGE_FOLDERS, MASK_FOLDERS, Unread, subfolder
from pscl_hpc.archive.ingest.items import Item, Skipped
from pscl_hpc.archive.ingest.layout import Layout, find_layouts, layout_of
from pscl_hpc.archive.ingest.mask_values import Key, classes_of_values, scribble_names
from pscl_hpc.archive.ingest.splits import SPLITS_FILE, Listed, Splits, read_splits
from pscl_hpc.errors import UserError
from pscl_hpc.files import nfc, readable


@dataclass(frozen=True)
class MaskMeaning:
    """What masks mean in folders whose ``splits.json`` does not say it."""

    classes: tuple[str, ...] = ()
    values: Mapping[Key, str] = field(default_factory=dict)
    """Value or colour -> class name."""
    scribbles: bool = False
    """0, and what is outside all shapes, is not annotated."""

    def names(self, classes: tuple[str, ...]) -> dict[Key, str]:
        """Value or colour -> name, for masks of these classes; empty if the values are the class indices."""
        return dict(self.values) or (scribble_names(classes) if self.scribbles else {})


class Finder:
    """Collects what :func:`~.sources.plan` packs."""

    def __init__(self, meaning: MaskMeaning) -> None:
        self.meaning = meaning
        self._roots: dict[str, Path] = {}
        self.items: list[Item] = []
        self.skipped: list[Skipped] = []
        self.unread: list[Unread] = []
        self.notes: list[str] = []
        self.collections: dict[str, Collection] = {}
        self.labels: dict[str, tuple[str, ...]] = {}
        """Collection -> labels in its annotation files."""

    def add(self, source: Path) -> None:
        if source.is_file():
            folder = source.absolute().parent
            self.add_layout(
                Layout(folder, folder, {source.name: folder / source.name}, {}, {}, (), (), {}, ""),
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

    def add_pair(self, images: Path, masks: Path) -> None:
        """Add the images of a folder with the masks in another folder or in an annotation file."""
        self.add_layout(layout_of(images, masks), images.absolute().parent)

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped.append(Skipped(readable(str(path)), reason))

    def add_layout(self, layout: Layout, root: Path, *, file: Path | None = None) -> None:
        """Add the images of a collection; ``root`` is the folder that the user gave, or that of the given ``file``."""
        name, base = plain_name(layout.folder.resolve().name), layout.base
        if self._roots.setdefault(name, base.resolve()) != base.resolve():
            raise UserError(
                f"{base} and {self._roots[name]} would both be the dataset {name!r}; rename one of these folders"
            )
        splits_file = layout.folder / SPLITS_FILE
        splits = read_splits(splits_file) if file is None and splits_file.is_file() else Splits()
        meaning = self._meaning(splits)
        classes = splits.classes or classes_of_values(splits.mask_values) or self.meaning.classes
        names = meaning.names(classes)
        by_folder = layout.splits if not splits.files else {}
        listed = splits.match(list(layout.images), base.name)
        stems = {}
        for relative, path in layout.images.items():
            stem = stems[relative] = Path(relative).with_suffix("").as_posix()
            below_root = path.absolute().relative_to(root.absolute()).as_posix()
            masks = layout.masks.get(relative, ())
            drawn, drawing = layout.drawings.get(relative, (None, None))
            self.items.append(
                Item(
                    path=file or path,
                    source=readable(f"{root.resolve().name}/{below_root}"),
                    dataset=name,
                    stem=plain_name(stem),
                    mask=masks[-1] if masks else drawn,
                    drawing=drawing,
                    scribbles=meaning.scribbles,
                    same_named=masks if len(masks) > 1 else (),
                    split=listed.split.get(relative) or by_folder.get(relative, ""),
                    listed=relative in listed.exactly,
                    mask_names=tuple(names.items()) if masks else (),
                )
            )
        for path in layout.strays:
            self._skip(path, "a mask without an image of the same name; rename one of them")
        references = self._references(listed, stems, base)
        for missing in listed.missing:
            fix = f"correct the name and its suffix in {SPLITS_FILE}"
            self._skip(base / missing, f"listed in {SPLITS_FILE} but not found; {fix}")
        self.unread += layout.unread
        self.notes += _notes(name, layout, by_folder)
        if splits.background in splits.ignore_classes and len(classes) > 2:
            kept = [name for index, name in enumerate(classes) if index not in splits.ignore_classes]
            self.notes.append(
                f"{splits_file}: the background {classes[splits.background]} is one of the ignore_classes, so "
                f"{' and '.join(kept)} all count as foreground in the scores; name another class as background"
            )
        self.labels[name] = layout.labels
        self.collections[name] = Collection(
            name=name,
            classes=classes if splits.classes or layout.masks or layout.drawings or layout.strays else (),
            background=splits.background,
            ignore_classes=splits.ignore_classes,
            references=tuple(f"{name}/{plain_name(stem)}" for stem in references),
        )

    def _references(self, listed: Listed, stems: Mapping[str, str], base: Path) -> list[str]:
        """The stems of the references of a collection; names that match no image or several are reported as skipped."""
        references = []
        for wanted, found in listed.references:
            if len(found) > 1:
                reason = f"a reference in {SPLITS_FILE} that matches {len(found)} images; add its folder"
                self._skip(base / wanted, reason)
                continue
            if not found:
                reason = f"a reference in {SPLITS_FILE} but not found; correct the name in {SPLITS_FILE}"
                self._skip(base / wanted, reason)
            # One that is not found may be in the archive already.
            references.append(stems[found[0]] if found else str(Path(wanted).with_suffix("")))
        return references

    def _meaning(self, splits: Splits) -> MaskMeaning:
        """What the masks of a folder mean, from its ``splits.json`` or else from the options."""
        if splits.mask_values or splits.scribbles:
            return MaskMeaning(splits.classes, splits.mask_values, splits.scribbles)
        return self.meaning


def _notes(name: str, layout: Layout, splits: Mapping[str, str]) -> list[str]:
    notes = []
    if layout.rule:
        images, annotated = (
            {Path(image).with_suffix("") for image in found}
            for found in (layout.images, (*layout.masks, *layout.drawings))
        )
        count = f"{len(annotated)} of {len(images)} images have a mask"
        notes.append(f"{name}: {count} ({layout.rule})")
    if splits:
        counts = Counter(splits.values())
        shown = ", ".join(f"{split} {count}" for split, count in counts.items())
        notes.append(f"{name}: splits are taken from the folders: {shown}")
    return [readable(note) for note in (*notes, *layout.notes)]


def plain_name(name: str) -> str:
    """A name without folders and control characters, for ids and for file names made from them."""
    name = re.sub(r"#(?=\d+$)", "_", nfc(readable(name)))  # "#0" at the end of an id is a page number
    return re.sub(r"[\x00-\x1f]", "_", name.replace("/", "__")) or "images"

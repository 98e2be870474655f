"""From image files and folders to a list of images to pack, with masks, splits and metadata.

A source may be a dataset folder (see :mod:`.layout`), a folder of dataset folders, or any other folder of images. A
collection has the name of its folder. What is not read is listed as skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.ingest.apply_metadata import apply_metadata
from pscl_hpc.archive.ingest.finder import Finder, MaskMeaning
from pscl_hpc.archive.ingest.images import IMAGE_SUFFIXES
from pscl_hpc.archive.ingest.items import Item, Skipped, unique_items
from pscl_hpc.archive.ingest.mask_values import Key, by_colour, class_indices, classes_of_values
from pscl_hpc.archive.ingest.masks import check_colours, check_first_class, check_palettes
from pscl_hpc.archive.ingest.metadata_csv import MetadataFile
from pscl_hpc.archive.ingest.splits import check_classes
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
    mask_values: Mapping[Key, str] | None = None,
    scribbles: bool = False,
    pair: tuple[Path, Path] | None = None,
) -> Plan:
    """List the images under ``sources``, sorted by id, with masks, splits and metadata.

    Args:
        sources: image files or folders.
        metadata: a CSV file (see :mod:`.metadata_csv`).
        classes: class names of datasets that have masks but no ``splits.json``.
        mask_values: value or colour in the masks -> class name or ``ignore``, for datasets whose ``splits.json`` has none.
        scribbles: 0 in the masks, and what is outside all shapes, is not annotated; 1 is the first class.
        pair: a folder of images and the folder of their masks, in addition to ``sources``.

    Raises:
        UserError: a source does not exist or has no image, masks would be packed as images, class names are missing or
            not needed, or ``splits.json`` or the CSV file is wrong.
    """
    values = mask_values or {}
    classes = tuple(classes) or classes_of_values(values)
    check_classes(classes, "--classes")
    finder = Finder(MaskMeaning(classes, values, scribbles))
    for source in sources:
        finder.add(source)
    if pair is not None:
        finder.add_pair(*pair)
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
        if lines.not_used:
            word = "columns" if len(lines.not_used) > 1 else "column"
            finder.notes.append(f"{metadata}: not used: the {word} {', '.join(lines.not_used)}")
        finder.notes += [f"{metadata}: {note}" for note in lines.notes]
        items, collections = apply_metadata(items, collections, lines, roots, finder.meaning)
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
    _check_masks(unique.values(), collections, finder.labels)
    found = [
        replace(
            item, mask_values=tuple(class_indices(dict(item.mask_names), collections[item.dataset]).items())
        )
        if item.mask is not None and item.mask_names
        else item
        for item in unique.values()
    ]
    return Plan(tuple(found), collections, tuple(skipped), tuple(finder.notes))


def _check_masks(
    items: Iterable[Item], collections: Mapping[str, Collection], labels: Mapping[str, Sequence[str]]
) -> None:
    """UserError, with the option to add, when masks need class names or the classes of colours."""
    by_dataset: dict[str, list[Item]] = {}
    for item in items:
        if item.mask is not None:
            by_dataset.setdefault(item.dataset, []).append(item)
    for name, annotated in by_dataset.items():
        collection = collections[name]
        pictures = [item.mask for item in annotated if item.mask is not None and item.drawing is None]
        if not any(by_colour(dict(item.mask_names)) for item in annotated):
            check_palettes(pictures)
            check_colours(pictures, collection.classes)
        if collection.classes:
            indexed = [item.mask for item in annotated if item.mask and not (item.drawing or item.mask_names)]
            check_first_class(indexed, collection)
            continue
        wanted = "a,b"
        if not pictures and (known := [label for label in labels.get(name, ()) if label]):
            wanted = (
                f"BACKGROUND,{','.join(known)}, where BACKGROUND is the class of pixels outside all shapes"
            )
        raise UserError(
            f"{annotated[0].mask} is a mask but {name} has no class names; give them with --classes {wanted}"
        )

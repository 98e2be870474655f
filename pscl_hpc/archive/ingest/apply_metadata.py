"""Masks, splits and other properties of images from the CSV file of ``--metadata``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.ingest.annotations import Drawing, annotation_suffixes, read_annotations
from pscl_hpc.archive.ingest.drawings import image_of
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.finder import MaskMeaning, plain_name
from pscl_hpc.archive.ingest.items import Item
from pscl_hpc.archive.ingest.metadata_csv import NUMBERS, TEXTS, Line, MetadataFile
from pscl_hpc.errors import UserError
from pscl_hpc.files import nfc


def apply_metadata(
    items: list[Item],
    collections: dict[str, Collection],
    metadata: MetadataFile,
    sources: list[Path],
    meaning: MaskMeaning,
) -> tuple[list[Item], dict[str, Collection]]:
    """Apply the lines of a CSV file to their images."""
    roots = [metadata.path.parent, *(path if path.is_dir() else path.parent for path in sources)]
    changed = {item.path: item for item in items}
    by_name: dict[str, list[tuple[str, Path]]] = {}
    for item in items:
        by_name.setdefault(nfc(item.path.name), []).append((item.source, item.path))
    collections = dict(collections)
    images = [metadata.match(line, by_name) for line in metadata.lines]
    metadata.check_consistent(images)
    for path, line in zip(images, metadata.lines, strict=True):
        item = changed[path]
        home = collections[item.dataset]
        if line.text("dataset"):
            item = replace(item, dataset=plain_name(line.text("dataset")))
        known = collections.get(item.dataset, Collection(item.dataset))
        if line.text("mask"):
            names = item.mask_names or tuple(meaning.names(known.classes or meaning.classes).items())
            mask, drawing = _mask(metadata, line, roots, path)
            item = replace(item, mask=mask, drawing=drawing, same_named=(), mask_names=names)
        if item.mask is not None and not known.classes:
            # A mask from the dataset folder has its classes; one from the CSV file has those of --classes.
            classed = replace(home, name=item.dataset, references=known.references)
            known = classed if home.classes else replace(known, classes=meaning.classes)
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


def _mask(metadata: MetadataFile, line: Line, roots: list[Path], image: Path) -> tuple[Path, Drawing | None]:
    """The mask that a line names, and the shapes of the image if it is an annotation file."""
    path = metadata.inside(line, "mask", roots)
    if path.suffix.lower() not in annotation_suffixes():
        return path, None
    try:
        file = read_annotations(path)
    except Unreadable as error:
        raise UserError(f"{line.where}: {path}: {error}") from error
    drawings = () if file is None else file.drawings
    if file is not None and len(drawings) > 1:
        drawings = tuple(one for one in drawings if image_of(file, one, {image.name: image}))
    if len(drawings) != 1:
        raise UserError(f"{line.where}: {path} does not list {image.name} once; name another mask")
    return path, drawings[0]

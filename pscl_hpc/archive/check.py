"""Verifying an archive: checksums, masks, references, duplicates and specimens in several splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pscl_hpc.archive.duplicates import Thumbnail, Thumbnailer, similar_pairs
from pscl_hpc.archive.format import IGNORE_INDEX, TILE, ImageRecord, check_mask
from pscl_hpc.archive.manifest import read_manifest, sha256_of
from pscl_hpc.archive.reader import Archive
from pscl_hpc.errors import UserError
from pscl_hpc.progress import Progress


@dataclass(frozen=True)
class Finding:
    """One problem of an archive."""

    kind: str
    """``"checksum"``, ``"mask"``, ``"reference"``, ``"duplicate"``, ``"leak"`` (a duplicate in another split),
    ``"specimen"`` or ``"split"``."""
    images: tuple[str, ...]
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def check(archive: Archive, *, progress: bool = False) -> list[Finding]:
    """Read every pixel once and return all problems."""
    findings = list(_shards(archive))
    thumbnails: dict[int, Thumbnail] = {}
    with Progress("checking", len(archive), unit="image", show=progress) as bar:
        for record in archive.records:
            try:
                thumbnails[record.index] = _pixels(archive, record)
            except UserError as error:
                findings.append(Finding("checksum", (record.id,), str(error)))
            if record.has_mask:
                findings += _mask(archive, record)
            bar.advance(record.id)
    findings += _duplicates(archive, thumbnails)
    return [*findings, *_references(archive), *_specimens(archive), *_without_split(archive)]


def _shards(archive: Archive) -> Iterator[Finding]:
    for entry in read_manifest(archive.path) if archive.path.is_dir() else ():
        shard = archive.path / entry.file
        if sha256_of(shard) != entry.sha256:
            problem = f"{shard} does not match its checksum in the manifest; copy it again"
            yield Finding("checksum", (), problem)


def _pixels(archive: Archive, record: ImageRecord) -> Thumbnail:
    """Verify the checksum of an image and return its thumbnail."""
    digest = hashlib.sha256()
    thumbnailer = Thumbnailer(record.height, record.width)
    for top in range(0, record.height, TILE):
        strip = archive.read_image(record.index, (top, 0, min(TILE, record.height - top), record.width))
        digest.update(np.ascontiguousarray(strip).data)
        thumbnailer.add(strip)
    if digest.hexdigest() != archive.rows[record.index].pixel_checksum:
        raise UserError(f"the pixels of {record.id} do not match their checksum; build the archive again")
    return thumbnailer.thumbnail()


def _mask(archive: Archive, record: ImageRecord) -> Iterator[Finding]:
    try:
        mask = archive.read_mask(record.index)
        check_mask(mask, record.height, record.width, archive.collections[record.dataset])
    except (UserError, ValueError) as error:
        yield Finding("mask", (record.id,), f"{record.id}: {error}")
        return
    if hashlib.sha256(mask.tobytes()).hexdigest() != archive.rows[record.index].mask_checksum:
        yield Finding("checksum", (record.id,), f"the mask of {record.id} does not match its checksum")
    elif (mask == IGNORE_INDEX).all():
        yield Finding("mask", (record.id,), f"{record.id}: no pixel of the mask is annotated")


def _duplicates(archive: Archive, thumbnails: dict[int, Thumbnail]) -> Iterator[Finding]:
    """Copies among the images with a thumbnail, by index."""
    first_with: dict[tuple[str, int, int], int] = {}
    pairs: dict[tuple[int, int], str] = {}
    indices = list(thumbnails)
    for index in indices:
        row = archive.rows[index]
        first = first_with.setdefault((row.pixel_checksum, row.height, row.width), index)
        if first != index:
            pairs[first, index] = "the same pixels"
    for pair in similar_pairs(np.array([*thumbnails.values()], np.float32)):
        how = f"{pair.turn}, correlation {pair.correlation:.3f}"
        pairs.setdefault((indices[pair.first], indices[pair.second]), how)
    for (first, second), how in sorted(pairs.items()):
        one, two = archive.records[first], archive.records[second]
        leak = one.split != two.split and bool(one.split and two.split)
        where = f" ({one.split} and {two.split})" if leak else ""
        detail = f"{one.id} and {two.id} are copies{where}: {how}"
        yield Finding("leak" if leak else "duplicate", (one.id, two.id), detail)


def _references(archive: Archive) -> Iterator[Finding]:
    """References that are not annotated training images."""
    known = {record.id: record for record in archive.records}
    for collection in archive.collections.values():
        for name in collection.references:
            record = known.get(name)
            problem = ""
            if record is None:
                problem = "is not in the archive"
            elif not record.has_mask:
                problem = "has no mask"
            elif record.split not in ("", "train"):
                problem = f"is in the split {record.split}"
            if problem:
                yield Finding("reference", (name,), f"the reference image {name} {problem}")


def _specimens(archive: Archive) -> Iterator[Finding]:
    splits: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in archive.records:
        if record.specimen and record.split:
            splits[record.dataset, record.specimen][record.split].append(record.id)
    for (dataset, specimen), by_split in sorted(splits.items()):
        if len(by_split) > 1:
            where = " and ".join(f"{split} ({images[0]})" for split, images in sorted(by_split.items()))
            images = tuple(image for images in by_split.values() for image in images)
            yield Finding("specimen", images, f"specimen {specimen} of {dataset} is in {where}")


def _without_split(archive: Archive) -> Iterator[Finding]:
    """Annotated images without a split in collections that have splits."""
    for name in archive.collections:
        annotated = archive.select(datasets=[name], has_mask=True)
        without = tuple(record.id for record in annotated if not record.split)
        if without and len(without) < len(annotated):
            yield Finding(
                "split",
                without,
                f"{len(without)} of {len(annotated)} annotated images of {name} have no split but others do "
                f"(the first: {without[0]}); they count as unlabelled, so add them to a split in splits.json",
            )

"""Verifying an archive: checksums, masks, references, duplicates and specimens in several splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
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
    findings = _shards(archive)
    thumbnails = []
    sound: list[ImageRecord] = []
    with Progress("checking", len(archive), unit="image", show=progress) as bar:
        for record in archive.records:
            try:
                thumbnails.append(_pixels(archive, record))
                sound.append(record)
            except UserError as error:
                findings.append(Finding("checksum", (record.id,), str(error)))
            if record.has_mask:
                findings += _mask(archive, record)
            bar.advance(record.id)
    checksums = [archive.rows[record.index].pixel_checksum for record in sound]
    findings += _duplicates(sound, checksums, np.array(thumbnails, np.float32))
    return findings + _references(archive) + _specimens(archive) + _without_split(archive)


def _shards(archive: Archive) -> list[Finding]:
    if not archive.path.is_dir():
        return []
    return [
        Finding(
            "checksum",
            (),
            f"{archive.path / entry.file} does not match its checksum in the manifest; copy it again",
        )
        for entry in read_manifest(archive.path)
        if sha256_of(archive.path / entry.file) != entry.sha256
    ]


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


def _mask(archive: Archive, record: ImageRecord) -> list[Finding]:
    try:
        mask = archive.read_mask(record.index)
        check_mask(mask, record.height, record.width, archive.collections[record.dataset])
    except (UserError, ValueError) as error:
        return [Finding("mask", (record.id,), f"{record.id}: {error}")]
    if hashlib.sha256(mask.tobytes()).hexdigest() != archive.rows[record.index].mask_checksum:
        return [Finding("checksum", (record.id,), f"the mask of {record.id} does not match its checksum")]
    if (mask == IGNORE_INDEX).all():
        return [Finding("mask", (record.id,), f"{record.id}: no pixel of the mask is annotated")]
    return []


def _duplicates(
    records: Sequence[ImageRecord], checksums: Sequence[str], thumbnails: Thumbnail
) -> list[Finding]:
    equal: dict[tuple[str, int, int], int] = {}
    pairs: list[tuple[int, int, str]] = []
    for place, (record, checksum) in enumerate(zip(records, checksums, strict=True)):
        first = equal.setdefault((checksum, record.height, record.width), place)
        if first != place:
            pairs.append((first, place, "the same pixels"))
    exact = {(first, second) for first, second, _ in pairs}
    for pair in similar_pairs(thumbnails):
        if (pair.first, pair.second) not in exact:
            pairs.append((pair.first, pair.second, f"{pair.turn}, correlation {pair.correlation:.3f}"))
    findings = []
    for first, second, how in sorted(pairs):
        one, two = records[first], records[second]
        leak = one.split != two.split and bool(one.split and two.split)
        where = f" ({one.split} and {two.split})" if leak else ""
        detail = f"{one.id} and {two.id} are copies{where}: {how}"
        findings.append(Finding("leak" if leak else "duplicate", (one.id, two.id), detail))
    return findings


def _references(archive: Archive) -> list[Finding]:
    """References that are not annotated training images."""
    known = {record.id: record for record in archive.records}
    findings = []
    for collection in archive.collections.values():
        for name in collection.references:
            record = known.get(name)
            if record is None:
                problem = "is not in the archive"
            elif not record.has_mask:
                problem = "has no mask"
            elif record.split not in ("", "train"):
                problem = f"is in the split {record.split}"
            else:
                continue
            findings.append(Finding("reference", (name,), f"the reference image {name} {problem}"))
    return findings


def _specimens(archive: Archive) -> list[Finding]:
    splits: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in archive.records:
        if record.specimen and record.split:
            splits[record.dataset, record.specimen][record.split].append(record.id)
    return [
        Finding(
            "specimen",
            tuple(image for images in by_split.values() for image in images),
            f"specimen {specimen} of {dataset} is in "
            + " and ".join(f"{split} ({images[0]})" for split, images in sorted(by_split.items())),
        )
        for (dataset, specimen), by_split in sorted(splits.items())
        if len(by_split) > 1
    ]


def _without_split(archive: Archive) -> list[Finding]:
    """Annotated images without a split in collections that have splits."""
    findings = []
    for name in archive.collections:
        annotated = archive.select(datasets=[name], has_mask=True)
        without = [record.id for record in annotated if not record.split]
        if without and any(record.split for record in annotated):
            findings.append(
                Finding(
                    "split",
                    tuple(without),
                    f"{len(without)} of {len(annotated)} annotated images of {name} have no split but others do "
                    f"(the first: {without[0]}); they count as unlabelled, so add them to a split in splits.json",
                )
            )
    return findings

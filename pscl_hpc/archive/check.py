"""Verifying an archive: checksums, masks, references, duplicates and specimens in several splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from pscl_hpc.archive.copies import Finding, copies
from pscl_hpc.archive.duplicates import Thumbnail, Thumbnailer, Thumbnails
from pscl_hpc.archive.format import IGNORE_INDEX, TILE, Row, check_mask, fingerprint
from pscl_hpc.archive.manifest import read_manifest
from pscl_hpc.archive.reader import Archive
from pscl_hpc.errors import UserError
from pscl_hpc.files import sha256_of
from pscl_hpc.progress import Progress


def check(
    archive: Archive, *, progress: bool = False, remark: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Read every pixel once and return all problems.

    Args:
        archive: Open archive.
        progress: Show a bar.
        remark: Called with sentences on what was not checked.
    """
    findings = list(_shards(archive))
    changed = bool(findings)
    thumbnails = Thumbnails(len(archive))
    broken = 0
    with Progress("checking", len(archive), unit="image", show=progress) as bar:
        for index, row in enumerate(archive.all_rows()):
            try:
                thumbnails[index] = _pixels(archive, index, row)
            except UserError as error:
                broken += 1
                findings.append(Finding("checksum", (row.id,), str(error)))
            if row.has_mask:
                findings += _mask(archive, index, row)
            bar.advance(row.id)
    own = fingerprint(archive.all_rows(), archive.collections.values())
    if not changed and own != archive.fingerprint:
        problem = f"the index of {archive.path} does not match its fingerprint; build the archive again"
        findings.append(Finding("checksum", (), problem))
    findings += copies(archive, thumbnails)
    if blank := len(archive) - len(thumbnails.useful()) - broken:
        remark(
            f"{blank} of {len(archive)} images show no features but noise or one grey level; of these only the same pixels "
            "are found as copies"
        )
    return [*findings, *_references(archive), *_specimens(archive), *_without_split(archive)]


def _shards(archive: Archive) -> Iterator[Finding]:
    for entry in read_manifest(archive.path).shards if archive.path.is_dir() else ():
        shard = archive.path / entry.file
        if sha256_of(shard) != entry.sha256:
            problem = f"{shard} does not match its checksum in the manifest; copy it again"
            yield Finding("checksum", (), problem)


def _pixels(archive: Archive, index: int, row: Row) -> Thumbnail:
    """Verify the checksum of an image and return its thumbnail."""
    digest = hashlib.sha256()
    thumbnailer = Thumbnailer(row.height, row.width)
    for top in range(0, row.height, TILE):
        strip = archive.read_image(index, (top, 0, min(TILE, row.height - top), row.width))
        digest.update(np.ascontiguousarray(strip).data)
        thumbnailer.add(strip)
    if digest.hexdigest() != row.pixel_checksum:
        raise UserError(f"the pixels of {row.id} do not match their checksum; build the archive again")
    return thumbnailer.thumbnail()


def _mask(archive: Archive, index: int, row: Row) -> Iterator[Finding]:
    try:
        mask = archive.read_mask(index)
        check_mask(mask, row.height, row.width, archive.collections[row.dataset])
    except (UserError, ValueError) as error:
        yield Finding("mask", (row.id,), f"{row.id}: {error}")
        return
    if hashlib.sha256(mask.tobytes()).hexdigest() != row.mask_checksum:
        yield Finding("checksum", (row.id,), f"the mask of {row.id} does not match its checksum")
    elif (mask == IGNORE_INDEX).all():
        yield Finding("mask", (row.id,), f"{row.id}: no pixel of the mask is annotated")


def _references(archive: Archive) -> Iterator[Finding]:
    """References that are not annotated training images."""
    for collection in archive.collections.values():
        for name in collection.references:
            record = archive.find(name) if archive.has(name) else None
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
    for row in archive.all_rows():
        if row.specimen and row.split:
            splits[row.dataset, row.specimen][row.split].append(row.id)
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

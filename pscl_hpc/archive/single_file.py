"""A temporary archive of one image file, so that it is decoded and scaled exactly as an archived image."""

from __future__ import annotations

import tempfile
from collections.abc import Collection as AnyCollection
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.ingest.page import Page
from pscl_hpc.archive.ingest.prepare import prepare, sensitive_to
from pscl_hpc.archive.options import IngestOptions
from pscl_hpc.archive.reader import Archive
from pscl_hpc.archive.writer import ShardWriter

_COLLECTION = "files"


@dataclass(frozen=True)
class FilePage:
    """A page of the file in the temporary archive."""

    index: int
    """Index of the image."""
    bar: int | None
    """Index of the rows cut from its bottom edge, in the same intensity range; None if none were cut."""
    sensitive: frozenset[str]
    """Fields of ``unsure`` that could have changed this image."""
    remark: str = ""
    """Why its intensity range is not that of the percentiles; empty if it is."""


@contextmanager
def temporary_archive(
    path: Path, folder: Path, options: IngestOptions, *, unsure: AnyCollection[str] = ()
) -> Iterator[tuple[Archive, list[FilePage]]]:
    """An archive of the pages of one image file, removed after the block.

    Args:
        path: the image file.
        folder: where the archive is made.
        options: how the images are packed.
        unsure: fields of ``options`` that are guesses.

    Raises:
        Unreadable: the file has no image, or one that cannot be packed with these options.
    """
    with tempfile.TemporaryDirectory(prefix=".packed-", dir=folder) as scratch:
        shard = Path(scratch) / "image.h5"
        found: list[tuple[str, str | None, frozenset[str]]] = []
        with (
            open_pages(path) as pages,
            ShardWriter(shard, [Collection(_COLLECTION)], percentiles=options.percentiles) as writer,
        ):
            for number, page in enumerate(pages):
                prepared = prepare(page, options)
                image_id, bar_id = f"{_COLLECTION}/{number}", None
                _add(writer, prepared.image, image_id, prepared.image.intensity)
                if prepared.bar is not None:
                    bar_id = f"{_COLLECTION}/{number}.bar"
                    _add(writer, prepared.bar, bar_id, (writer.rows[-1].low, writer.rows[-1].high))
                found.append((image_id, bar_id, frozenset(sensitive_to(prepared.image, unsure))))
        with Archive(shard) as archive:
            file_pages = [
                FilePage(
                    archive.find(image).index,
                    archive.find(bar).index if bar else None,
                    sensitive,
                    writer.remarks.get(image, ""),
                )
                for image, bar, sensitive in found
            ]
            yield archive, file_pages


def _add(writer: ShardWriter, page: Page, image_id: str, intensity: tuple[float, float] | None) -> None:
    writer.add_strips(
        page.strips(),
        shape=(page.height, page.width, page.channels),
        dtype=page.dtype,
        id=image_id,
        dataset=_COLLECTION,
        intensity=intensity,
        um_per_pixel=page.um_per_pixel,
    )

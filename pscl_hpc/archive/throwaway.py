"""A throw-away archive of one image file, so that it is decoded, scaled and read as an image of an archive is."""

from __future__ import annotations

import tempfile
from collections.abc import Collection as Some
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
    """Where a page of the file is in the archive."""

    index: int
    """The image, as ``archive build`` would have it."""
    bar: int | None
    """The rows that were cut from its bottom edge, in the same scale; None where none were."""
    sensitive: frozenset[str]
    """Those of the fields asked about that could have made another image of this page."""


@contextmanager
def packed_file(
    path: Path, folder: Path, options: IngestOptions, *, unsure: Some[str] = ()
) -> Iterator[tuple[Archive, list[FilePage]]]:
    """An archive of the pages of one file, gone after the block.

    Args:
        path: The file.
        folder: Where there is room for the archive.
        options: Those of the archive that the images are to be like.
        unsure: Fields of ``options`` that are guessed.

    Raises:
        Unreadable: there is no image in the file, or not one that can be packed so.
    """
    with tempfile.TemporaryDirectory(prefix=".packed-", dir=folder) as scratch:
        shard = Path(scratch) / "image.h5"
        places: list[tuple[str, str | None, frozenset[str]]] = []
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
                places.append((image_id, bar_id, frozenset(sensitive_to(prepared.image, unsure))))
        with Archive(shard) as archive:
            yield (
                archive,
                [
                    FilePage(
                        archive.find(image_id).index,
                        archive.find(bar_id).index if bar_id is not None else None,
                        sensitive,
                    )
                    for image_id, bar_id, sensitive in places
                ],
            )


def _add(writer: ShardWriter, page: Page, image_id: str, intensity: tuple[float, float] | None) -> None:
    writer.add_strips(
        page.strips(),
        shape=(page.height, page.width, page.channels),
        dtype=page.dtype,
        id=image_id,
        dataset=_COLLECTION,
        intensity=intensity,
    )

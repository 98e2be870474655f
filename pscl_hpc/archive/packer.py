"""Packing the pages of files into the parts of a build."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.few_values import FewValues
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.ingest.items import Item
from pscl_hpc.archive.ingest.masks import read_mask
from pscl_hpc.archive.ingest.page import Page
from pscl_hpc.archive.ingest.prepare import prepare, sensitive_to
from pscl_hpc.archive.options import AUTO_CROP, IngestOptions
from pscl_hpc.archive.parts import Parts, stored_bytes
from pscl_hpc.archive.writer import ShardWriter

PART_BYTES = 128 << 20
"""Raw pixels in a part."""
PART_S = 30.0
"""Seconds after which a part is finished: at most these and one file are lost in a crash."""

_LOOK_FOR_BARS = 50
"""Images of a collection that are searched for information bars: each is read a second time in part."""


class Packer:
    """Writes images into parts of limited size; all pages of a file are in one part."""

    def __init__(
        self, parts: Parts, collections: dict[str, Collection], options: IngestOptions, compression: str
    ) -> None:
        self._parts = parts
        self._collections = collections
        self._options = options
        self._compression = compression
        self._writer: ShardWriter | None = None
        self._bytes = 0
        self._since = 0.0
        self.remarks: dict[str, str] = {}
        self._like_masks: dict[str, list[str]] = {}
        self._with_bars: dict[str, list[str]] = {}
        self._looked_for_bars: Counter[str] = Counter()

    def warnings(self) -> list[str]:
        """Warnings about packed images that may be masks, or have an information bar."""
        masks = [
            f"{dataset}: {len(ids)} of its images may be masks, they have only a few grey levels each ({_few(ids)}); if "
            "they are, name the folders with --images and --masks"
            for dataset, ids in self._like_masks.items()
        ]
        bars = [
            f"{dataset}: {len(ids)} of the {self._looked_for_bars[dataset]} images looked at seem to have an information "
            f"bar at the bottom edge ({_few(ids)}), which would count as a phase; add --crop-bottom auto to cut it"
            for dataset, ids in self._with_bars.items()
        ]
        return masks + bars

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # Ctrl-C and SIGTERM keep the open part; any other exception discards it and keeps the finished ones.
        if kind in (KeyboardInterrupt, SystemExit):
            kind = error = trace = None
        self._close(kind, error, trace)

    def pack(self, item: Item, hashes: tuple[str, str]) -> dict[str, int]:
        """Append all pages of one file, or none and raise Unreadable; returns id -> rows cut by automatic cropping."""
        writer = self._open()
        mark = len(writer)
        try:
            with open_pages(item.path, self._options.page) as pages:
                cropped = {}
                left_out = {}
                for number, page in enumerate(pages):
                    image_id = item.id if len(pages) == 1 else f"{item.id}#{number}"
                    cut = self._append(writer, item, image_id, page, hashes, (number, len(pages)))
                    if page.left_out:
                        left_out[item.id] = page.left_out
                    if cut and self._options.crop_bottom == AUTO_CROP:
                        cropped[image_id] = cut
        except (Unreadable, ValueError) as error:
            writer.truncate(mark)
            raise Unreadable(str(error)) from error
        except BaseException:
            writer.truncate(mark)
            raise
        self.remarks |= writer.remarks | left_out
        self._bytes += sum(stored_bytes(row) for row in writer.rows[mark:])
        if self._bytes >= PART_BYTES or time.monotonic() - self._since >= PART_S:
            self._close()
        return cropped

    def _append(
        self,
        writer: ShardWriter,
        item: Item,
        image_id: str,
        page: Page,
        hashes: tuple[str, str],
        position: tuple[int, int],
    ) -> int:
        prepared = prepare(page, self._options)
        page = prepared.image
        mask = None
        if item.mask is not None:
            if item.drawing is not None and position[1] > 1:
                raise Unreadable(f"it has {position[1]} pages but shapes on one; choose it with --page")
            collection = self._collections[item.dataset]
            mask = read_mask(
                item.mask,
                collection,
                page.height + prepared.cut,
                page.width,
                page.height,
                dict(item.mask_values) or None,
                drawing=item.drawing,
                scribbles=item.scribbles,
                page=page,
                position=position,
                chosen=self._options.page,
            )
        few = FewValues()
        writer.add_strips(
            few.watch(page.strips()),
            shape=(page.height, page.width, page.channels),
            dtype=page.dtype,
            mask=mask,
            id=image_id,
            dataset=item.dataset,
            split=item.split,
            specimen=item.specimen,
            production_batch=item.production_batch,
            alloy=item.alloy,
            magnification=item.magnification or page.magnification,
            um_per_pixel=item.um_per_pixel or page.um_per_pixel,
            source=item.source,
            sha256=hashes[0],
            mask_sha256=hashes[1],
            intensity=page.intensity,
            ingest=self._options,
        )
        if not self._options.crop_bottom and self._looked_for_bars[item.dataset] < _LOOK_FOR_BARS:
            self._looked_for_bars[item.dataset] += 1
            if sensitive_to(page, {"crop_bottom"}):
                self._with_bars.setdefault(item.dataset, []).append(image_id)
        if few and mask is None and image_id not in writer.remarks:
            self._like_masks.setdefault(item.dataset, []).append(image_id)
        return prepared.cut

    def _open(self) -> ShardWriter:
        if self._writer is None:
            collections = list(self._collections.values())
            self._writer = ShardWriter(
                self._parts.next_path(), collections, self._compression, percentiles=self._options.percentiles
            ).__enter__()
            self._bytes, self._since = 0, time.monotonic()
        return self._writer

    def _close(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: Any = None
    ) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(kind, error, trace)
            if kind is None and len(writer):
                self._parts.add(writer.path)
            elif kind is None:
                writer.path.unlink()  # all files of this part are damaged


def _few(ids: Sequence[str]) -> str:
    """The first of some ids."""
    return f"{', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}"

"""Packing image files into an archive: resumable, additive, in a fixed order."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pscl_hpc.archive.codecs import AUTO
from pscl_hpc.archive.format import MANIFEST, Collection, Row, parse_pool, unite
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.ingest.masks import read_mask
from pscl_hpc.archive.ingest.page import Page
from pscl_hpc.archive.ingest.prepare import prepare
from pscl_hpc.archive.ingest.sources import Item, Plan, Skipped
from pscl_hpc.archive.options import AUTO_CROP, IngestOptions, differing, options_from_json
from pscl_hpc.archive.publish import Pick, publish_file, publish_folder, sha256_of, stored_bytes
from pscl_hpc.archive.reader import Archive
from pscl_hpc.archive.scratch import Scratch
from pscl_hpc.archive.unwritable import Unwritable, written
from pscl_hpc.archive.writer import ShardWriter
from pscl_hpc.errors import UserError
from pscl_hpc.progress import Progress

PART_BYTES = 128 << 20
"""Raw pixels in a part: what a kill can cost."""
SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class BuildOptions(IngestOptions):
    """How images are stored: what makes their pixels, and how these are compressed."""

    compression: str = AUTO


@dataclass(frozen=True)
class BuildResult:
    """What a build did."""

    path: Path
    added: int
    unchanged: int
    skipped: tuple[Skipped, ...]
    cropped: dict[str, int]
    """Image id -> rows cut by automatic cropping."""
    otherwise: tuple[str, ...]
    """Unchanged images that these options would have packed in another way."""


def build(
    plan: Plan,
    out: Path,
    options: BuildOptions,
    *,
    shard_bytes: int | None = None,
    progress: bool = False,
) -> BuildResult:
    """Pack the images of a plan into ``out``, adding to an archive that is already there.

    Finished parts wait in ``OUT.partial/``; after a kill the same call goes on from them. An old archive stays in
    place until the new one replaces it in one rename.

    Args:
        out: a file, or a folder of shards when ``shard_bytes`` is given or a folder is there.
        shard_bytes: raw pixels per shard.
        progress: show a bar.

    Raises:
        UserError: nothing could be packed, the archive there has other classes, or another build is at work.
    """
    if out.is_dir() and shard_bytes is None:
        shard_bytes = SHARD_BYTES
    if shard_bytes is not None and out.is_file():
        raise UserError(f"{out} is a file; give another --out for a folder of shards")
    _united(plan, _existing(out), out)  # refused before anything is written
    try:
        with written(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with Scratch(out, asdict(options) | {"percentiles": list(options.percentiles)}) as scratch:
                # Looked at under the lock: another build may have ended since.
                old = _existing(out)
                collections = _united(plan, old, out)
                return _build(plan, out, options, old, collections, scratch, shard_bytes, progress)
    except Unwritable as error:
        raise Unwritable(out, error.reason, "mend that and run the same command to go on") from error


def _build(
    plan: Plan,
    out: Path,
    options: BuildOptions,
    old: Archive | None,
    collections: dict[str, Collection],
    scratch: Scratch,
    shard_bytes: int | None,
    progress: bool,
) -> BuildResult:
    skipped = list(plan.skipped)
    cropped: dict[str, int] = {}
    planned = {item.id: item for item in plan.items}
    kept = {_file_id(row.id): row for row in old.rows} if old else {}
    packed = {_file_id(row.id): row for part in scratch.parts for row in part.rows}
    unchanged = 0
    otherwise: list[str] = []
    packer = _Packer(scratch, collections, options)
    good: set[str] = set()
    bar = Progress("packing", len(planned), unit="file", show=progress)
    with bar, packer:
        for item_id, item in planned.items():
            try:
                hashes = _hashes(item)
                if item_id in kept:
                    _same(kept[item_id], item, hashes, out)
                    unchanged += 1
                    if _packed_otherwise(kept[item_id], options):
                        otherwise.append(item_id)
                else:
                    if item_id not in packed or not _matches(packed[item_id], item, hashes):
                        cropped |= packer.pack(item, hashes)
                    good.add(item_id)
            except Unreadable as error:
                skipped.append(Skipped(item.source, str(error)))
            bar.advance(item.path.name)
    picks = _new_picks(scratch, good)
    if not picks and not kept:
        if not scratch.parts:
            scratch.remove()
        reasons = "; ".join(f"{item.path}: {item.reason}" for item in skipped[:3])
        raise UserError(f"none of the {len(planned)} images could be packed ({reasons}); correct the files")
    # A source of which nothing could be packed, such as a note among the images, makes no collection.
    used = {row.dataset for row, _ in picks} | (set(old.collections) if old else set())
    filled = {name: collection for name, collection in collections.items() if name in used}
    if picks or _new_collections(old, filled):
        listed = list(filled.values())
        if shard_bytes is not None:
            publish_folder(out, scratch.folder, picks, listed, options.compression, shard_bytes, progress)
        else:
            everything = picks + ([(row, shard) for shard in old.shards for row in shard.rows] if old else [])
            everything.sort(key=lambda pick: pick[0].id)
            publish_file(out, scratch.folder, everything, listed, options.compression, progress)
    scratch.remove()
    return BuildResult(out, len(picks), unchanged, tuple(skipped), cropped, tuple(otherwise))


class _Packer:
    """Writes images into parts of limited size; a file's pages never straddle two parts."""

    def __init__(self, scratch: Scratch, collections: dict[str, Collection], options: BuildOptions) -> None:
        self._scratch = scratch
        self._collections = collections
        self._options = options
        self._writer: ShardWriter | None = None
        self._bytes = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # Ctrl-C and SIGTERM keep what is packed; any other exception drops the open part, the finished ones stay.
        if kind in (KeyboardInterrupt, SystemExit):
            kind = error = trace = None
        self._close(kind, error, trace)

    def pack(self, item: Item, hashes: tuple[str, str]) -> dict[str, int]:
        """Append the pages of one file; all or, with Unreadable, none."""
        writer = self._open()
        mark = len(writer)
        try:
            with open_pages(item.path) as pages:
                cropped = {}
                for number, page in enumerate(pages):
                    image_id = item.id if len(pages) == 1 else f"{item.id}#{number}"
                    cut = self._append(writer, item, image_id, page, hashes, len(pages))
                    if cut and self._options.crop_bottom == AUTO_CROP:
                        cropped[image_id] = cut
        except (Unreadable, ValueError) as error:
            writer.truncate(mark)
            raise Unreadable(str(error)) from error
        except BaseException:
            writer.truncate(mark)
            raise
        self._bytes += sum(stored_bytes(row) for row in writer.rows[mark:])
        if self._bytes >= PART_BYTES:
            self._close()
        return cropped

    def _append(
        self, writer: ShardWriter, item: Item, image_id: str, page: Page, hashes: tuple[str, str], pages: int
    ) -> int:
        prepared = prepare(page, self._options)
        page = prepared.image
        mask = None
        if item.mask is not None:
            if pages > 1:
                raise Unreadable(f"it has {pages} pages but one mask; save the pages as single files")
            collection = self._collections[item.dataset]
            mask = read_mask(item.mask, collection, page.height + prepared.cut, page.width, page.height)
        writer.add_strips(
            page.strips(),
            shape=(page.height, page.width, page.channels),
            dtype=page.dtype,
            mask=mask,
            id=image_id,
            dataset=item.dataset,
            split=item.split,
            specimen=item.specimen,
            condition=item.condition,
            alloy=item.alloy,
            magnification=item.magnification or page.magnification,
            um_per_pixel=item.um_per_pixel or page.um_per_pixel,
            source=item.source,
            sha256=hashes[0],
            mask_sha256=hashes[1],
            intensity=page.intensity,
            ingest=self._options,
        )
        return prepared.cut

    def _open(self) -> ShardWriter:
        if self._writer is None:
            collections = list(self._collections.values())
            options = self._options
            self._writer = ShardWriter(
                self._scratch.next_part(), collections, options.compression, percentiles=options.percentiles
            ).__enter__()
            self._bytes = 0
        return self._writer

    def _close(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: Any = None
    ) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(kind, error, trace)
            if kind is None and len(writer):
                self._scratch.add_part(writer.path)
            elif kind is None:
                writer.path.unlink()  # every file that was tried for this part is damaged


def _hashes(item: Item) -> tuple[str, str]:
    try:
        own = sha256_of(item.path)
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from error
    try:
        return own, sha256_of(item.mask) if item.mask else ""
    except OSError as error:
        raise Unreadable(f"its mask {item.mask} cannot be opened ({error.strerror})") from error


_METADATA = ("split", "specimen", "condition", "alloy")


def _matches(row: Row, item: Item, hashes: tuple[str, str]) -> bool:
    same_text = all(getattr(row, name) == getattr(item, name) for name in _METADATA)
    same_number = all(
        getattr(item, name) is None or getattr(row, name) == getattr(item, name)
        for name in ("magnification", "um_per_pixel")
    )
    return (row.sha256, row.mask_sha256) == hashes and same_text and same_number


def _same(row: Row, item: Item, hashes: tuple[str, str], out: Path) -> None:
    """Unreadable when an image that is in the archive comes again in another form."""
    if _matches(row, item, hashes):
        return
    what = "pixels" if row.sha256 != hashes[0] else "mask" if row.mask_sha256 != hashes[1] else "metadata"
    raise Unreadable(f"{item.id} is already in {out} with other {what}; rename it or build into a new file")


def _packed_otherwise(row: Row, options: IngestOptions) -> bool:
    """Whether an image of the archive has options recorded with which it is, or may be, another than with these."""
    recorded = options_from_json(row.ingest)
    dtype, channels = parse_pool(row.pool)
    return recorded is not None and bool(differing(recorded, options, dtype=dtype, channels=channels))


def _new_picks(scratch: Scratch, wanted: set[str]) -> list[Pick]:
    """The packed images of the wanted files, the latest version of each, sorted by id."""
    latest = {_file_id(row.id): part for part in scratch.parts for row in part.rows}
    picks = [
        (row, part)
        for part in scratch.parts
        for row in part.rows
        if _file_id(row.id) in wanted and latest[_file_id(row.id)] is part
    ]
    return sorted(picks, key=lambda pick: pick[0].id)


def _file_id(image_id: str) -> str:
    """The id of the file that a page came from."""
    return re.sub(r"#\d+$", "", image_id)


def _existing(out: Path) -> Archive | None:
    if out.is_dir() and not (out / MANIFEST).exists():
        # A build that was killed before its first manifest leaves shards and nothing else.
        if any(not path.match("shard-*.h5") for path in out.iterdir()):
            raise UserError(f"{out} is a folder with other files; name a new folder or an archive")
        return None
    return Archive(out) if out.exists() else None


def _united(plan: Plan, old: Archive | None, out: Path) -> dict[str, Collection]:
    """The collections of the archive and of the plan; a class list never changes under old images."""
    united = dict(old.collections) if old else {}
    for name, new in plan.collections.items():
        try:
            united[name] = unite(united.get(name, new), new)
        except ValueError as error:
            raise UserError(f"{error} in {out} than in the sources; build into a new file") from error
    return united


def _new_collections(old: Archive | None, collections: dict[str, Collection]) -> bool:
    return old is None or old.collections != collections

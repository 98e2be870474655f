"""Packing image files into an archive, or adding them to one, in a fixed order; an interrupted build can be resumed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from pscl_hpc.archive.codecs import AUTO
from pscl_hpc.archive.format import MANIFEST, Collection, Row, parse_pool, unite
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.items import Item, Skipped
from pscl_hpc.archive.ingest.sources import Plan
from pscl_hpc.archive.options import IngestOptions, differing, options_from_json
from pscl_hpc.archive.packer import Packer
from pscl_hpc.archive.parts import Parts, Pick, open_parts, publish
from pscl_hpc.archive.ranges import mixed_types, with_common_range
from pscl_hpc.archive.reader import Archive
from pscl_hpc.archive.write_errors import WriteError, write_errors
from pscl_hpc.errors import UserError
from pscl_hpc.files import sha256_of
from pscl_hpc.progress import Progress

SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class BuildOptions(IngestOptions):
    """How images are packed and compressed."""

    compression: str = AUTO


@dataclass(frozen=True)
class BuildResult:
    """The outcome of a build."""

    path: Path
    added: int
    unchanged: int
    skipped: tuple[Skipped, ...]
    cropped: dict[str, int]
    """Image id -> rows cut by automatic cropping."""
    with_other_options: tuple[str, ...]
    """Unchanged images that these options would have packed differently."""
    warnings: tuple[str, ...] = ()
    """Sentences on images whose intensity range was not what it usually is."""


def build(
    plan: Plan,
    out: Path,
    options: BuildOptions,
    *,
    shard_bytes: int | None = None,
    progress: bool = False,
) -> BuildResult:
    """Pack the images of a plan into ``out``, adding to an archive that already exists.

    Finished parts are kept in ``OUT.partial/``, from which the same call resumes after a crash. A new archive appears by
    one rename at the end; images are added to an old one, all or none, while others may be reading it.

    Args:
        out: a file, or a folder of shards if ``shard_bytes`` is given or the folder exists.
        shard_bytes: raw pixels per shard.
        progress: show a bar.

    Raises:
        UserError: no image could be packed, the archive has other classes, or another build of it is running.
    """
    if out.is_dir() and shard_bytes is None:
        shard_bytes = SHARD_BYTES
    if shard_bytes is not None and out.is_file():
        raise UserError(f"{out} is a file; give another --out for a folder of shards")
    _all_collections(plan, _existing(out), out)  # errors are raised before anything is written
    try:
        with write_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with open_parts(out, asdict(options) | {"percentiles": list(options.percentiles)}) as parts:
                return _build(plan, out, options, parts, shard_bytes, progress)
    except WriteError as error:
        raise WriteError(out, error.reason, "fix that and resume with the same command") from error


def _build(
    plan: Plan, out: Path, options: BuildOptions, parts: Parts, shard_bytes: int | None, progress: bool
) -> BuildResult:
    # Opened again under the lock, because another build may have ended since.
    old = _existing(out)
    collections = _all_collections(plan, old, out)
    skipped = list(plan.skipped)
    planned = {item.id: item for item in plan.items}
    existing: dict[str, Row] = {}
    if old:
        existing = {name: row for name in planned if (row := _row_of_file(old, name)) is not None}
    packed = {file_id(row.id): row for part in parts.shards for row in part.rows}
    cropped: dict[str, int] = {}
    unchanged: list[str] = []
    new: set[str] = set()
    bar = Progress("packing", len(planned), unit="file", show=progress)
    packer = Packer(parts, collections, options, options.compression)
    with bar, packer:
        for item_id, item in planned.items():
            try:
                hashes = _hashes(item)
                if item_id in existing:
                    _check_unchanged(existing[item_id], item, hashes, out)
                    unchanged.append(item_id)
                else:
                    if item_id not in packed or not _matches(packed[item_id], item, hashes):
                        cropped |= packer.pack(item, hashes)
                    new.add(item_id)
            except Unreadable as error:
                skipped.append(Skipped(item.source, str(error)))
            bar.advance(item.path.name)
    kinds = old.groups("dataset", "pool", "ingest") if old else []
    picks = with_common_range(_new_picks(parts, new), [row for row, _ in kinds])
    if not picks and not kinds:
        if not parts.shards:
            parts.remove()
        others = len(skipped) - 1
        more = f"; {others} more {'is' if others == 1 else 'are'} skipped" if others else ""
        raise UserError(f"no image could be packed: {skipped[0].path}: {skipped[0].reason}{more}")
    # A source of which no image was packed adds no collection.
    used = {row.dataset for row, _ in picks} | (set(old.collections) if old else set())
    filled = {name: collection for name, collection in collections.items() if name in used}
    if picks or old is None or old.collections != filled:
        listed = list(filled.values())
        publish(out, parts.folder, picks, listed, options.compression, shard_bytes, old, progress)
    parts.remove()
    with_other_options = tuple(name for name in unchanged if _has_other_options(existing[name], options))
    warnings = [f"{name}: {remark}" for name, remark in packer.remarks.items()]
    changed = {row.dataset for row, _ in picks}
    warnings += packer.warnings()
    warnings += mixed_types([*kinds, *((row, 1) for row, _ in picks)], changed)
    return BuildResult(
        out, len(picks), len(unchanged), tuple(skipped), cropped, with_other_options, tuple(warnings)
    )


def _hashes(item: Item) -> tuple[str, str]:
    try:
        own = sha256_of(item.path)
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from error
    try:
        mask = sha256_of(item.mask) if item.mask else ""
    except OSError as error:
        raise Unreadable(f"its mask {item.mask} cannot be opened ({error.strerror})") from error
    if mask and item.mask_values:  # other values make another mask of the same file
        meaning = sorted(item.mask_values, key=lambda pair: (isinstance(pair[0], str), pair))
        mask = hashlib.sha256(f"{mask} {meaning}".encode()).hexdigest()
    if mask and item.drawing is not None:  # the file may have shapes on other images, too
        mask = item.drawing.digest(scribbles=item.scribbles)
    return own, mask


def _matches(row: Row, item: Item, hashes: tuple[str, str]) -> bool:
    texts = (item.split, item.specimen, item.production_batch, item.alloy)
    numbers = ((row.magnification, item.magnification), (row.um_per_pixel, item.um_per_pixel))
    return (
        (row.sha256, row.mask_sha256) == hashes
        and (row.split, row.specimen, row.condition, row.alloy) == texts
        and all(given is None or given == stored for stored, given in numbers)
    )


def _check_unchanged(row: Row, item: Item, hashes: tuple[str, str], out: Path) -> None:
    """Unreadable when an image differs from the one with this id in the archive."""
    if _matches(row, item, hashes):
        return
    if row.sha256 != hashes[0]:
        what, fix = "pixels", "rename it or build"
    elif row.mask_sha256 != hashes[1]:
        what, fix = "mask", "build"
    else:
        what, fix = "metadata (split, specimen, scale, ...)", "build"
    raise Unreadable(f"{item.id} is already in {out} with other {what}; {fix} into a new file")


def _has_other_options(row: Row, options: IngestOptions) -> bool:
    """Whether these options would, or might, have packed an image of the archive differently."""
    recorded = options_from_json(row.ingest)
    dtype, channels = parse_pool(row.pool)
    return recorded is not None and bool(differing(recorded, options, dtype=dtype, channels=channels))


def _new_picks(parts: Parts, wanted: set[str]) -> list[Pick]:
    """The packed images of the wanted files, from the latest part that has them, sorted by id."""
    latest = {file_id(row.id): part for part in parts.shards for row in part.rows}
    picks = [
        (row, part)
        for part in parts.shards
        for row in part.rows
        if file_id(row.id) in wanted and latest[file_id(row.id)] is part
    ]
    return sorted(picks, key=lambda pick: pick[0].id)


def _row_of_file(old: Archive, item_id: str) -> Row | None:
    """The image of a file in an archive, or its first page."""
    for name in (item_id, f"{item_id}#0"):
        if old.has(name):
            return old.rows[old.find(name).index]
    return None


def file_id(image_id: str) -> str:
    """The id of the file of a page."""
    return re.sub(r"#\d+$", "", image_id)


def _existing(out: Path) -> Archive | None:
    if out.is_dir() and not (out / MANIFEST).exists():
        # A build that was killed before it wrote the first manifest leaves shards only.
        if any(not path.match("shard-*.h5") for path in out.iterdir()):
            raise UserError(f"{out} is a folder with other files; give a new folder or an archive")
        return None
    return Archive(out) if out.exists() else None


def _all_collections(plan: Plan, old: Archive | None, out: Path) -> dict[str, Collection]:
    """The collections of the archive and of the plan; UserError when a class list would change."""
    united = dict(old.collections) if old else {}
    for name, new in plan.collections.items():
        try:
            united[name] = unite(united.get(name, new), new)
        except ValueError as error:
            raise UserError(f"{error} in {out} than in the sources; build into a new file") from error
    return united

"""Image files to pack, and the choice among several files of one id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.archive.ingest.annotations import Drawing
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.ingest.mask_values import Key
from pscl_hpc.archive.ingest.masks import check_equal
from pscl_hpc.archive.ingest.pairing import is_mask_name, looks_like_mask
from pscl_hpc.files import readable


@dataclass(frozen=True)
class Item:
    """One image file to pack."""

    path: Path
    source: str
    """``path`` relative to the parent of the folder that the user gave."""
    dataset: str
    stem: str
    mask: Path | None = None
    split: str = ""
    specimen: str = ""
    production_batch: str = ""
    alloy: str = ""
    magnification: float | None = None
    um_per_pixel: float | None = None
    same_named: tuple[Path, ...] = ()
    """All masks with its name if there are several; ``mask`` is the last of them."""
    listed: bool = False
    """Whether ``splits.json`` or the CSV file lists this file."""
    mask_names: tuple[tuple[Key, str], ...] = ()
    """Value or colour in the mask -> class name; empty if the values are the class indices."""
    mask_values: tuple[tuple[Key, int], ...] = ()
    """Value or colour in the mask -> class index."""
    drawing: Drawing | None = None
    """The shapes on the image if ``mask`` is an annotation file."""
    scribbles: bool = False
    """Value 0, and pixels outside all shapes, are not annotated."""

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.stem}"


@dataclass(frozen=True)
class Skipped:
    """A file, or a folder of images, that was not packed, and why."""

    path: str
    reason: str


def unique_items(items: Sequence[Item], skipped: list[Skipped]) -> dict[str, Item]:
    """Image id -> item. Of several files with one id the listed one is taken, else the one with more bits."""
    by_id: dict[str, list[Item]] = {}
    for item in items:
        by_id.setdefault(item.id, []).append(item)
    unique: dict[str, Item] = {}
    for image_id, same in by_id.items():
        best = same[0] if len(same) == 1 else min(same, key=_preference)
        for other in same:
            if other is not best:
                why = "is listed" if best.listed and not other.listed else "is preferred"
                reason = f"{best.source} has the same image id {image_id} and {why}; rename one to pack both"
                skipped.append(Skipped(other.source, reason))
        try:
            if best.mask is None and _is_unpaired_mask(best):
                raise Unreadable(
                    "it looks like a mask by its name and values, but no image has a matching name; name the folders with "
                    "--images and --masks, or rename it if it is a micrograph"
                )
            if best.same_named:
                check_equal(best.same_named)
            unique[image_id] = best
        except Unreadable as error:
            skipped.append(Skipped(best.source, readable(str(error))))
    return unique


def _preference(item: Item) -> tuple[bool, bool, int, bool]:
    """Sorts the best of several files with one id first: listed, not like a mask, more than 8 bits, lossless."""
    try:
        with open_pages(item.path) as pages:
            depth = 1 if pages[0].dtype == "uint8" else 2
    except Unreadable:
        depth = 0
    lossy = item.path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")
    return not item.listed, looks_like_mask(item.path), -depth, lossy


def _is_unpaired_mask(item: Item) -> bool:
    names = (item.path.stem, item.path.absolute().parent.name)
    return any(map(is_mask_name, names)) and looks_like_mask(item.path)

"""Where images and masks are in a folder, and which images are in places that are not read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.archive.ingest.images import IMAGE_SUFFIXES
from pscl_hpc.archive.ingest.masks import MASK_SUFFIXES
from pscl_hpc.errors import UserError

IMAGE_FOLDERS = ("img", "images")
MASK_FOLDERS = ("gt", "masks", "labels")
_MASK_LIKE = (*MASK_FOLDERS, "mask", "label", "annotation", "annotations", "ground_truth", "groundtruth")
"""Names of folders that are taken for masks, even where masks are not read."""


@dataclass(frozen=True)
class Unread:
    """Images in a place that is not read."""

    folder: Path
    images: tuple[Path, ...]
    reason: str

    def without(self, read: set[str]) -> Unread | None:
        """Those that are not in ``read``, absolute paths; None if all are."""
        left = tuple(path for path in self.images if os.path.abspath(path) not in read)
        return Unread(self.folder, left, self.reason) if left else None

    def __str__(self) -> str:
        count = "1 image is" if len(self.images) == 1 else f"{len(self.images)} images are"
        return f"{count} not read ({self.images[0].name}{', ...' if len(self.images) > 1 else ''}): {self.reason}"


def subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the named subfolders that exists, in upper or lower case."""
    found = sorted(path for path in folder.iterdir() if path.name.lower() in names and path.is_dir())
    # An exact name comes first, because both may exist.
    return min(found, key=lambda path: (names.index(path.name.lower()), path.name not in names), default=None)


def images_under(folder: Path) -> list[Path]:
    """Image files under a folder, sorted; links are followed, hidden files and folders ignored.

    Raises:
        UserError: a folder cannot be read.
    """
    return sorted(_walk(folder, frozenset()))


def readable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8, as on disks of other systems, become question marks."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def by_stem(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Mask files by relative path without suffix: all in lossless formats, or else a JPEG."""
    found: dict[str, list[Path]] = {}
    for path in images_under(folder):
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    exact = {
        stem: [path for path in paths if path.suffix.lower() in MASK_SUFFIXES]
        for stem, paths in found.items()
    }
    return {stem: tuple(exact[stem] or paths[-1:]) for stem, paths in found.items()}


def beside_dataset(folder: Path, images: Path, masks: Path | None) -> list[Unread]:
    """Images of a dataset folder outside its two folders.

    A folder whose name begins with that of the mask folder (``gt_region``) is another annotation of the same images.
    """
    reason = f"move them into {images.name}/, or out of {folder.name}/"
    found = _loose(folder, reason)
    if masks is None:
        reason = f"rename the folder to gt if it has the masks of {images.name}/, or move it away"
    for path in _folders(folder):
        if path in (images, masks) or (masks and path.name.lower().startswith(masks.name.lower())):
            continue
        found.append(Unread(path, tuple(images_under(path)), reason))
    return found


def beside_datasets(folder: Path, datasets: Iterable[Path]) -> list[Unread]:
    """Images of a folder of dataset folders outside these."""
    found = _loose(folder, "move them into a separate folder and add that as a source")
    for path in _folders(folder):
        if path not in datasets:
            reason = "the folder has no img/ or images/; add it as a separate source"
            found.append(Unread(path, tuple(images_under(path)), reason))
    return found


def check_no_masks(folder: Path, images: Iterable[Path]) -> None:
    """UserError when a folder that is packed without masks contains some: they would be packed as micrographs."""
    for path in images:
        for parent in path.relative_to(folder).parents:
            place = folder / parent
            if parent.name.lower() not in _MASK_LIKE:
                continue
            if subfolder(place.parent, IMAGE_FOLDERS):
                raise UserError(
                    f"{folder} has dataset folders further down; give {place.parent.parent} as a source"
                )
            raise UserError(
                f"{place.parent} has masks in {place.name}/ but no img/ or images/; rename the folder of the images "
                f"to img{'' if place.name.lower() in MASK_FOLDERS else ' and that of the masks to gt'}"
            )


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        return  # a link to a parent folder
    try:
        inside = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); fix that or move it away") from None
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, above | {real})
        elif _is_image(path):
            yield path


def _loose(folder: Path, reason: str) -> list[Unread]:
    loose = (path for path in folder.iterdir() if _is_image(path) and not path.name.startswith("."))
    return [Unread(folder, tuple(sorted(loose)), reason)]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    # A broken link is included, so that it is reported when it cannot be opened.
    return path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or path.is_symlink())

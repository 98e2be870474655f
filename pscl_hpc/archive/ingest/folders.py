"""Where images and masks are in a folder, and which images are in places that are not read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.archive.ingest.foreign import NOT_READ, reason
from pscl_hpc.archive.ingest.images import IMAGE_SUFFIXES
from pscl_hpc.errors import UserError
from pscl_hpc.files import nfc

IMAGE_FOLDERS = ("img", "images")
MASK_FOLDERS = (
    "gt", "masks", "labels", "annotations", "mask", "label", "annotation", "annotated", "ground_truth", "groundtruth",
    "ground truth", "segmentationclass", "segmentation", "segmentations", "target", "targets",
)  # fmt: skip
"""Names of mask folders, the most usual first."""
_JUNK = ("@eadir", "__macosx", "$recycle.bin", "#recycle", "system volume information", "lost+found")
"""Folders that operating systems and network drives make."""
_OUTPUTS = {"segment.json": b'"overrides"', "run.json": b'"attempts"', "measurements.json": b'"histograms"'}
"""A file in each folder that this program writes, and a key in it."""
_ANNOTATION = re.compile(rb'"(shapes|annotations|segmentation)"|<(annotation|polygon)')
"""Is in JSON and XML files with annotations."""


@dataclass(frozen=True)
class Unread:
    """Images in a place that is not read, or files of a kind that is not read."""

    folder: Path
    images: tuple[Path, ...]
    reason: str

    def without(self, read: set[str]) -> Unread | None:
        """Those that are not in ``read``, absolute paths; None if all are."""
        left = tuple(path for path in self.images if os.path.abspath(path) not in read)
        return Unread(self.folder, left, self.reason) if left else None

    def __str__(self) -> str:
        count = "1 file is" if len(self.images) == 1 else f"{len(self.images)} files are"
        names = ", ".join(path.name for path in self.images[:3])
        return f"{count} not read ({names}{', ...' if len(self.images) > 3 else ''}): {self.reason}"


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
    return sorted(_walk(folder, frozenset(), _is_image))


def files_under(place: Path) -> list[Path]:
    """All files under a folder, sorted, as :func:`images_under`; a file stands for itself."""
    return [place] if place.is_file() else sorted(_walk(place, frozenset(), Path.is_file))


def name_on_disk(path: Path) -> Path:
    """An existing path that equals ``path`` up to Unicode normalisation; ``path`` itself if there is none."""
    if os.path.lexists(path) or path.parent == path:
        return path
    folder = name_on_disk(path.parent)
    try:
        same = (name for name in os.listdir(folder) if nfc(name) == nfc(path.name))
    except OSError:
        return path
    return folder / next(same, path.name)


def loose_images(folder: Path) -> list[Path]:
    """Image files in a folder itself, sorted."""
    return sorted(path for path in folder.iterdir() if _is_image(path) and not is_junk(path.name))


def foreign_files(folder: Path, used: Iterable[Path], known: Set[Path]) -> list[Unread]:
    """Image and annotation files of kinds that are not read: in ``folder`` itself and under the ``used`` folders.

    Args:
        known: files that are read or reported elsewhere.
    """
    files = {path for path in folder.iterdir() if path.is_file() and _is_foreign(path)}
    for place in used:
        files.update(_walk(place, frozenset(), _is_foreign))
    found: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(files - known):
        if not is_junk(path.name) and not _is_header(path):
            found.setdefault((path.parent, path.suffix.lower()), []).append(path)
    return [Unread(place, tuple(paths), reason(suffix)) for (place, suffix), paths in found.items()]


def _is_header(path: Path) -> bool:
    """Whether an .emi file belongs to .ser files, which have the images."""
    return path.suffix.lower() == ".emi" and any(path.parent.glob(f"{glob.escape(path.stem)}_*.ser"))


def beside_dataset(folder: Path, used: Set[Path], masks: Path | None) -> list[Unread]:
    """Images of a dataset folder outside its folders of images and masks.

    A folder whose name begins with that of the mask folder (``gt_region``) is another annotation of the same images.
    """
    images = min(path.name for path in used if path != masks)
    reason = f"move them into {images}/, or out of {folder.name}/"
    found = _loose(folder, reason)
    if masks is None:
        reason = f"rename the folder to gt if it has the masks of {images}/, or move it away"
    for path in subfolders(folder):
        if masks and path.name.lower().startswith(masks.name.lower()):
            continue
        left = (image for image in images_under(path) if used.isdisjoint(image.parents))
        found.append(Unread(path, tuple(left), reason))
    return [unread for unread in found if unread.images]


def beside_datasets(folder: Path, datasets: Iterable[Path]) -> list[Unread]:
    """Images of a folder of dataset folders outside these."""
    found = _loose(folder, "move them into a separate folder and add that as a source")
    for path in subfolders(folder):
        if path not in datasets:
            reason = "the folder has no img/ or images/; add it as a separate source"
            found.append(Unread(path, tuple(images_under(path)), reason))
    return found


def check_no_masks(folder: Path, images: Iterable[Path]) -> None:
    """UserError when a folder that is packed without masks contains some: they would be packed as micrographs."""
    for path in images:
        for parent in path.relative_to(folder).parents:
            place = folder / parent
            if parent.name.lower() not in MASK_FOLDERS:
                continue
            if subfolder(place.parent, IMAGE_FOLDERS):
                raise UserError(
                    f"{folder} has dataset folders further down; give {place.parent.parent} as a source"
                )
            raise UserError(
                f"{place.parent} has masks in {place.name}/ but no img/ or images/ with images of the same names; rename "
                "the folder of the images to img, or name both folders with --images and --masks"
            )


def _walk(folder: Path, above: frozenset[Path], wanted: Callable[[Path], bool]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        return  # a link to a folder that contains this one
    try:
        inside = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); fix that or move it away") from None
    for path in inside:
        if is_junk(path.name):
            continue
        if path.is_dir():
            if not is_output(path):
                yield from _walk(path, above | {real, *real.parents}, wanted)
        elif wanted(path):
            yield path


def _loose(folder: Path, reason: str) -> list[Unread]:
    return [Unread(folder, tuple(loose_images(folder)), reason)]


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones, those of operating systems and :func:`is_output`."""
    inside = (path for path in folder.iterdir() if path.is_dir() and not is_junk(path.name))
    return sorted(path for path in inside if not is_output(path))


def is_output(folder: Path) -> bool:
    """Whether a folder is a run or has the results of ``segment`` or ``measure``, whose pictures are not micrographs."""
    for name, key in _OUTPUTS.items():
        try:
            if key in (folder / name).read_bytes():
                return True
        except OSError:
            continue
    return False


def is_prediction(path: Path) -> bool:
    """Whether a file is a picture that ``predict`` writes: class indices, overlay or confidence."""
    if path.suffix != ".png":
        return False
    # os.path.exists: the name may be too long for the file system.
    return path.stem.endswith((".overlay", ".confidence")) or os.path.exists(path.with_suffix(".overlay.png"))


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden or made by an operating system."""
    return name.startswith(".") or name.lower() in _JUNK


def is_system_file(name: str) -> bool:
    """Whether a file or folder is made by an operating system or a network drive, so that nobody misses it."""
    return name.startswith("._") or name.lower() in (*_JUNK, "thumbs.db", "desktop.ini", ".ds_store")


def _is_foreign(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return False
    if suffix in NOT_READ:
        return True
    if suffix not in (".json", ".xml"):
        return False
    try:
        with path.open("rb") as file:
            return _ANNOTATION.search(file.read(1 << 20)) is not None
    except OSError:
        return True


def _is_image(path: Path) -> bool:
    # A broken link is included, so that it is reported when it cannot be opened.
    return path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or path.is_symlink())

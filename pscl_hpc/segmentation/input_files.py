"""The image files that the arguments of ``predict`` stand for: files and folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pscl_hpc.archive.ingest.folders import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    images_under,
    is_junk,
    is_output,
    is_system_file,
    name_on_disk,
)
from pscl_hpc.archive.ingest.foreign import NOT_READ, reason
from pscl_hpc.archive.ingest.images import IMAGE_SUFFIXES
from pscl_hpc.archive.ingest.layout import find_layouts
from pscl_hpc.errors import UserError


def list_files(names: Sequence[str], out: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The named files, and the images in the named folders as ``archive build`` finds them.

    Args:
        names: Files and folders; their Unicode normalisation (NFC, NFD) may differ from the one on disk.
        out: The output folder; files in it are not listed.

    Returns:
        The files, and what was skipped in the folders: path and reason.

    Raises:
        UserError: a folder cannot be read, is the output folder, or contains masks that would be taken for images.
    """
    files: list[str] = []
    skipped: list[tuple[str, str]] = []
    for name in map(_name_on_disk, names):
        if not os.path.isdir(name):
            files.append(name)
            continue
        images, others = _list_folder(Path(name), out.resolve())
        files += map(str, images)
        if not images:
            skipped.append((name, f"there is no image ({', '.join(IMAGE_SUFFIXES)}) in this folder"))
        skipped += [(str(path), reason) for path, reason in others]
    return list(dict.fromkeys(files)), skipped


def _list_folder(folder: Path, out: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    home = folder.resolve()
    if out == home:
        raise UserError(f"{folder}: is the folder of the images; name another output folder with --out")

    def is_input(path: Path) -> bool:
        return not (out.is_relative_to(home) and path.resolve().is_relative_to(out))

    layouts, _ = find_layouts(folder)
    images = [path for layout in layouts for path in layout.images.values() if is_input(path)]
    masks = {path for layout in layouts for some in layout.masks.values() for path in some}
    kept = {*images, *masks}
    elsewhere = Counter(path.parent for path in images_under(folder) if path not in kept and is_input(path))
    skipped = [
        (path, f"{count} images that are not in {' or '.join(IMAGE_FOLDERS)}")
        for path, count in elsewhere.items()
        if not {part.lower() for part in path.relative_to(folder).parts} & set(MASK_FOLDERS)
    ]
    for layout in layouts:
        skipped += [other for other in _other_files(layout.base) if is_input(other[0])]
    return images, skipped


def _other_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Hidden files and folders, and files of other kinds, each with the reason why it is skipped; not those that operating
    systems make."""
    seen = set()  # a link can lead to a folder above
    for here, folders, files in os.walk(folder, followlinks=True):
        hidden = [name for name in folders if is_junk(name)]
        folders[:] = [name for name in folders if name not in hidden and not is_output(Path(here, name))]
        if os.path.realpath(here) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        for name in sorted(files + hidden):
            suffix = Path(name).suffix.lower()
            if is_system_file(name):
                continue
            if is_junk(name):
                yield Path(here, name), "hidden files and folders are not read"
            elif suffix not in IMAGE_SUFFIXES:
                why = (
                    reason(suffix)
                    if suffix in NOT_READ
                    else f"is not an image file ({', '.join(IMAGE_SUFFIXES)})"
                )
                yield Path(here, name), why


def _name_on_disk(name: str) -> str:
    """An existing path that equals ``name`` up to Unicode normalisation; ``name`` itself if there is none."""
    return name if os.path.lexists(name) else str(name_on_disk(Path(name)))

"""The image files that the arguments of ``predict`` stand for: files and folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pscl_hpc.archive.ingest.folders import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    Unread,
    beside_dataset,
    beside_datasets,
    images_under,
    refuse_masks,
    subfolder,
)
from pscl_hpc.archive.ingest.images import IMAGE_SUFFIXES
from pscl_hpc.errors import UserError
from pscl_hpc.segmentation.evaluate import same_name

Skipped = tuple[str, str]
"""Path and reason."""


def list_files(names: Sequence[str], out: Path) -> tuple[list[str], list[Skipped]]:
    """The named files, and the images in the named folders as ``archive build`` finds them.

    Args:
        names: Files and folders. Their Unicode normalisation (NFC, NFD) may differ from the one on disk.
        out: The output folder; files in it are not listed.

    Returns:
        Paths of files, which may be missing if they were named, and what was skipped in the folders.

    Raises:
        UserError: a folder cannot be read, is the output folder, or holds masks that would be taken for images.
    """
    files: list[str] = []
    skipped: list[Skipped] = []
    for name in map(_name_on_disk, names):
        if not os.path.isdir(name):
            files.append(name)
            continue
        images, others = _list_folder(Path(name), out.resolve())
        files += images
        if not images:
            skipped.append((name, f"there is no image ({', '.join(IMAGE_SUFFIXES)}) in this folder"))
        skipped += others
    return list(dict.fromkeys(files)), skipped


def _list_folder(folder: Path, out: Path) -> tuple[list[str], list[Skipped]]:
    home = folder.resolve()
    if out == home:
        raise UserError(f"{folder}: is the folder of the images; name another output folder with --out")

    def is_input(path: Path) -> bool:
        return not (out.is_relative_to(home) and path.resolve().is_relative_to(out))

    found = images_under(folder)
    sources, unread = _image_folders(folder)
    if not sources:
        refuse_masks(folder, filter(is_input, found))
        sources = [folder]
    skipped = []
    for one in unread:
        if images := tuple(filter(is_input, one.images)):
            skipped.append((str(one.folder), str(replace(one, images=images))))
    for source in sources:
        skipped += [(str(path), reason) for path, reason in _other_files(source) if is_input(path)]
    return [str(path) for path in found if any(map(path.is_relative_to, sources)) and is_input(path)], skipped


def _image_folders(folder: Path) -> tuple[list[Path], list[Unread]]:
    """The image folders of one or several dataset folders and the images outside of them; both empty otherwise."""
    datasets = [folder]
    if not subfolder(folder, IMAGE_FOLDERS):
        datasets = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    sources: dict[Path, Path] = {}
    unread: list[Unread] = []
    for path in datasets:
        if images := subfolder(path, IMAGE_FOLDERS):
            sources[path] = images
            unread += beside_dataset(path, images, subfolder(path, MASK_FOLDERS))
    if sources and folder not in sources:
        unread += beside_datasets(folder, sources)
    return list(sources.values()), unread


def _other_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Hidden files and folders, and files of other kinds, each with the reason why it is skipped."""
    seen = set()  # links can lead to a folder above
    for here, folders, files in os.walk(folder, followlinks=True):
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = [name for name in folders if name not in hidden]
        if os.path.realpath(here) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        for name in sorted(files + hidden):
            if name.startswith("."):
                yield Path(here, name), "hidden files and folders are not read"
            elif Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                yield Path(here, name), f"is not an image file ({', '.join(IMAGE_SUFFIXES)})"


def _name_on_disk(name: str) -> str:
    """An existing path that equals ``name`` up to Unicode normalisation; ``name`` itself if there is none."""
    if os.path.lexists(name) or os.path.dirname(name) == name:
        return name
    folder = _name_on_disk(os.path.dirname(name))
    try:
        return os.path.join(folder, same_name(os.path.basename(name), os.listdir(folder or ".")))
    except OSError:
        return name

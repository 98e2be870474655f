"""Which annotation file belongs to which image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pscl_hpc.archive.ingest.annotations import AnnotationFile, Drawing, annotation_suffixes, read_annotations
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.folders import Unread, files_under, is_junk
from pscl_hpc.files import nfc

_ROI_WORDS = re.compile(r"^(roi[ _-]?sets?|rois?)[ ._-]+|[ ._-]*(roi[ _-]?sets?|rois?)$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Drawings:
    """The shapes found in a dataset folder."""

    of_image: Mapping[str, tuple[Path, Drawing]]
    """Name of an image -> its file of shapes and the shapes."""
    used: frozenset[Path]
    """Files from which at least one image has shapes."""
    formats: tuple[str, ...]
    labels: tuple[str, ...]
    """All labels, in the order of the files."""
    unread: tuple[Unread, ...]
    notes: tuple[str, ...]
    """Sentences on images that are listed without a shape."""


def find_drawings(folder: Path | None, places: Iterable[Path], images: Mapping[str, Path]) -> Drawings:
    """Match annotation files to images.

    Args:
        folder: dataset folder; files in it are considered.
        places: files, and folders in which files at any depth are considered.
        images: name -> file of the images that have no mask of pixels.
    """
    suffixes = annotation_suffixes()
    paths = (
        {path for path in folder.iterdir() if path.is_file() and not is_junk(path.name)} if folder else set()
    )
    for place in places:
        paths.update(files_under(place))
    unread: list[Unread] = []
    notes: list[str] = []
    read: set[Path] = set()
    matched: dict[str, list[tuple[AnnotationFile, Drawing]]] = {}
    for path in sorted(path for path in paths if path.suffix.lower() in suffixes):
        try:
            file = read_annotations(path)
        except Unreadable as error:
            unread.append(Unread(path.parent, (path,), str(error)))
            continue
        if file is None:
            continue
        if not file.drawings:
            unread.append(Unread(path.parent, (path,), f"it is {file.format}, but lists no image"))
            continue
        without, empty = [], []
        for drawing in file.drawings:
            name = image_of(file, drawing, images)
            if name is not None and not drawing.shapes and not drawing.problem:
                empty.append(name)
            elif name is None:
                without.append(drawing.image or path.name)
            else:
                matched.setdefault(name, []).append((file, drawing))
        if without:
            names = f"{', '.join(without[:3])}{', ...' if len(without) > 3 else ''}"
            reason = (
                f"{len(without)} of {len(file.drawings)} images in it ({names}) are not here, or have a mask of pixels, "
                "which is used; rename the file as its image, or move it away"
            )
            unread.append(Unread(path.parent, (path,), reason))
        if empty:
            # Files list images that nobody has looked at yet, so these are not all background.
            read.add(path)
            count = f"{len(empty)} of {len(file.drawings)} images in it have"
            notes.append(f"{path}: {count} no shape, so they have no mask ({', '.join(empty[:3])})")
    files = list(dict.fromkeys(file for some in matched.values() for file, _ in some))
    return Drawings(
        {name: _single(some) for name, some in matched.items()},
        frozenset(file.path for file in files) | read,
        tuple(dict.fromkeys(file.format for file in files)),
        tuple(dict.fromkeys(label for file in files for label in file.labels)),
        tuple(unread),
        tuple(notes),
    )


def _single(found: Sequence[tuple[AnnotationFile, Drawing]]) -> tuple[Path, Drawing]:
    file, drawing = found[0]
    if len(found) > 1:
        names = " and ".join(dict.fromkeys(other.path.name for other, _ in found))
        drawing = replace(drawing, problem=f"the image is annotated {len(found)} times, in {names}; keep one")
    return file.path, drawing


def image_of(file: AnnotationFile, drawing: Drawing, images: Mapping[str, Path]) -> str | None:
    """The image that a drawing belongs to: by the name of the file if it has one drawing, else by the name in the file."""
    if len(file.drawings) == 1 and (found := _by_stem(file.path, images)):
        return found
    wanted = PurePosixPath(nfc(drawing.image.replace("\\", "/")))
    if not wanted.name:
        return None
    same = [name for name, path in images.items() if nfc(path.name).casefold() == wanted.name.casefold()]
    if not same:  # exported with another ending
        same = [name for name, path in images.items() if nfc(path.stem) == wanted.stem]
    return _nearest(same, wanted.parts, file.path, images)


def _by_stem(annotations: Path, images: Mapping[str, Path]) -> str | None:
    stem = nfc(annotations.stem)
    for key in dict.fromkeys((stem, _ROI_WORDS.sub("", stem))):
        if not key:
            inside = [name for name, path in images.items() if path.parent == annotations.parent] or list(
                images
            )
            return inside[0] if len(inside) == 1 else None
        same = [name for name, path in images.items() if key in (nfc(path.stem), nfc(path.name))]
        if same:
            return _nearest(same, annotations.parts, annotations, images)
    return None


def _nearest(
    names: Sequence[str], parts: Sequence[str], annotations: Path, images: Mapping[str, Path]
) -> str | None:
    """The image in the same folder, or else the one whose folders agree most from the end; None if several do."""
    beside = [name for name in names if images[name].parent == annotations.parent]
    if len(beside) == 1:
        return beside[0]
    common = {name: _agreeing(images[name].parts[:-1], parts[:-1]) for name in names}
    best = [name for name in names if common[name] == max(common.values())]
    return best[0] if len(best) == 1 else None


def _agreeing(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for first, second in zip(reversed(one), reversed(other), strict=False):
        if nfc(first) != nfc(second):
            break
        count += 1
    return count

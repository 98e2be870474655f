"""Which mask belongs to which image, by their names; and what looks like a mask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.folders import MASK_FOLDERS
from pscl_hpc.archive.ingest.images import IMAGE_SUFFIXES, open_pages
from pscl_hpc.archive.ingest.mask_pixels import MASK_SUFFIXES
from pscl_hpc.files import nfc

_WORDS = (
    "simple segmentation|cp_masks|masks?|labels?|annotations?|annotated|annots?|gt|ground_?truth|segmentations?|seg|"
    "targets?|segmented|binary|binari[sz]ed|thresholded|masken?|masques?"
)
_IMAGE_WORDS = ("img", "image", "raw", "input", "orig", "original")
"""Endings of the images beside masks with another ending."""
MASK_SUFFIX = re.compile(rf"(.+?)(?:([ ._-]+)\(?(?:{_WORDS})\)?|annot)", re.IGNORECASE)
_PREFIX = re.compile(rf"(?:{_WORDS})[ _-](.+)", re.IGNORECASE)
_FEW_VALUES = 32
_FLAT_SHARE = 0.8
"""Share of equal neighbours from which an image is piecewise constant; camera noise leaves far fewer."""
_ROWS = 2048
_SUBFOLDERS = 16
"""So many folders, at most, are compared with each other."""


def pair(
    images: Sequence[str], masks: Mapping[str, Path], *, near: bool = True
) -> tuple[dict[str, tuple[Path, ...]], list[Path]]:
    """Image name -> its masks, and masks without an image.

    Args:
        masks: name -> file.
        near: the masks are in another folder, so that equal names pair.
    """
    by_key: dict[str, list[str]] = {}
    for name in images:
        stem = PurePosixPath(name).with_suffix("").as_posix()
        for key in dict.fromkeys((stem, name)):
            by_key.setdefault(nfc(key), []).append(name)
    folded: dict[str, list[str]] = {}
    for key, same in by_key.items():
        folded.setdefault(key.casefold(), []).extend(same)
    found: dict[str, list[Path]] = {}
    alone = []
    for name, path in masks.items():
        keys = _image_keys(nfc(PurePosixPath(name).with_suffix("").as_posix()), near)
        same = next((by_key[key] for key in keys if key in by_key), [])
        same = [image for image in same if near or image != name]
        if not same:
            stems = [folded[key.casefold()] for key in keys if key.casefold() in folded]
            same = stems[0] if near and stems and len(set(stems[0])) == 1 else []
        for image in dict.fromkeys(same):
            found.setdefault(image, []).append(path)
        if not same:
            alone.append(path)
    return {name: _exact(some) for name, some in found.items()}, alone


def _image_keys(stem: str, near: bool) -> list[str]:
    """Possible stems or file names of the image of a mask, most likely first."""
    folder, name = str(PurePosixPath(stem).parent), PurePosixPath(stem).name
    keys = [name] if near or PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES else []
    if match := MASK_SUFFIX.fullmatch(name):
        keys += [match[1], *(f"{match[1]}{match[2]}{word}" for word in _IMAGE_WORDS if match[2])]
    if re.fullmatch(_WORDS, name, re.IGNORECASE):
        keys += _IMAGE_WORDS
    if match := _PREFIX.fullmatch(name):
        keys += [match[1], f"image_{match[1]}", f"img_{match[1]}"]
    if near:
        keys.append(f"{name}_0000")  # the first channel of nnU-Net
    return [key if folder == "." else f"{folder}/{key}" for key in keys]


def _exact(masks: Sequence[Path]) -> tuple[Path, ...]:
    exact = tuple(path for path in masks if path.suffix.lower() in MASK_SUFFIXES)
    return exact or tuple(masks[-1:])


def in_one_folder(images: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Masks in the folder of their image, which are named after it: ``0_mask.png`` beside ``0.tif``; or ``0.png``."""
    suspects = {
        name: path
        for name, path in images.items()
        if is_mask_name(path.stem) or PurePosixPath(path.stem).suffix.lower() in IMAGE_SUFFIXES
    }
    paired, _ = pair(list(images), suspects, near=False)
    found = {name: tuple(filter(looks_like_mask, masks)) for name, masks in paired.items()}
    return _twins(images) | {name: masks for name, masks in found.items() if masks}


def _twins(images: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Images with a mask of the same name and another suffix: it looks like a mask, and the image does not."""
    by_stem: dict[str, list[str]] = {}
    for name in images:
        by_stem.setdefault(nfc(PurePosixPath(name).with_suffix("").as_posix()), []).append(name)
    found: dict[str, tuple[Path, ...]] = {}
    for same in (names for names in by_stem.values() if len(names) > 1):
        masks = [name for name in same if images[name].suffix.lower() in MASK_SUFFIXES]
        masks = [name for name in masks if looks_like_mask(images[name])]
        others = [name for name in same if name not in masks and not looks_like_mask(images[name])]
        found |= {name: tuple(images[mask] for mask in masks) for name in others if masks}
    return found


def masks_of_another_folder(folder: Path, images: Sequence[Path]) -> tuple[Path, Path] | None:
    """Two of a few subfolders with files of the same names, of which the second looks like masks of the first; or None."""
    inside: dict[Path, dict[str, Path]] = {}
    for path in images:
        top, *rest = path.relative_to(folder).parts
        if rest:
            key = nfc(PurePosixPath(*rest).with_suffix("").as_posix()).casefold()
            inside.setdefault(folder / top, {})[key] = path
    if len(inside) > _SUBFOLDERS:
        return None
    for masks, theirs in inside.items():
        key, first = next(iter(theirs.items()))
        others = [other for other in inside if other != masks and theirs.keys() <= inside[other].keys()]
        if others and looks_like_mask(first):
            for other in others:
                if not looks_like_mask(inside[other][key]):
                    return other, masks
    return None


def is_mask_name(name: str) -> bool:
    """Whether a file stem or a folder name is one that masks have."""
    return (
        bool(
            MASK_SUFFIX.fullmatch(name)
            or _PREFIX.fullmatch(name)
            or re.fullmatch(_WORDS, name, re.IGNORECASE)
        )
        or name.lower() in MASK_FOLDERS
    )


def looks_like_mask(path: Path) -> bool:
    """Whether an image has few values or is piecewise constant, or has a type that only label images have."""
    try:
        with open_pages(path) as pages:
            pixels = pages[0].rows(0, min(pages[0].height, _ROWS))
    except Unreadable as error:
        return "without loss" in str(error)
    if pixels.shape[2] == 3:
        pixels = pixels.astype(np.float64) @ np.array([[1], [1000], [1000000]])
    if np.unique(pixels).size <= _FEW_VALUES:
        return True
    return pixels.shape[1] > 1 and bool((pixels[:, 1:] == pixels[:, :-1]).mean() >= _FLAT_SHARE)

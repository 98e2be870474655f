"""Which images, masks and splits a folder contains, by the conventions of several programs.

A *layout* is one collection. The conventions are tried in this order: ``img/`` or ``images/`` with a mask folder
(``gt/``, ``masks/``, ``labels/``, ``annotations/``, ...); ``imagesTr/`` + ``labelsTr/``; other usual names of an image
folder beside a mask folder (``JPEGImages/`` + ``SegmentationClass/``, ``input/`` + ``target/``); ``train/`` +
``train_annot/``; one folder of images, or images, beside a mask folder; and images with masks in the same folder
(``0.tif`` + ``0_mask.png``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pscl_hpc.archive.ingest.annotations import Drawing
from pscl_hpc.archive.ingest.drawings import find_drawings
from pscl_hpc.archive.ingest.folders import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    Unread,
    beside_dataset,
    beside_datasets,
    check_no_masks,
    foreign_files,
    images_under,
    is_prediction,
    loose_images,
    subfolder,
    subfolders,
)
from pscl_hpc.archive.ingest.pairing import MASK_SUFFIX, in_one_folder, masks_of_another_folder, pair
from pscl_hpc.archive.ingest.splits import SPLITS_FILE
from pscl_hpc.errors import UserError

_IMAGE_NAMES = (*IMAGE_FOLDERS, "image", "imgs", "jpegimages", "input", "inputs", "micrographs", "raw")
"""Names of image folders, where a mask folder is beside them."""
_NNUNET = "imagesTr/ + labelsTr/"
_SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """A folder of images and the folder of their masks."""

    images: Path
    masks: Path | None = None
    prefix: str = ""
    """Before the name of each image."""
    split: str = ""
    loose: bool = False
    """Only images in the folder itself."""
    annotations: Path | None = None
    """A file of shapes on these images."""


@dataclass(frozen=True)
class Layout:
    """The images of one collection."""

    folder: Path
    """The collection has its name."""
    base: Path
    """Names of images are relative to it in messages."""
    images: Mapping[str, Path]
    """Name (path in the image folder) -> file, sorted."""
    masks: Mapping[str, tuple[Path, ...]]
    """Name of an image -> its masks: all in lossless formats, or else one JPEG."""
    drawings: Mapping[str, tuple[Path, Drawing]]
    """Name of an image without mask -> its annotation file and the shapes in it."""
    labels: tuple[str, ...]
    """All labels of these files."""
    strays: tuple[Path, ...]
    """Masks without an image."""
    splits: Mapping[str, str]
    """Name of an image -> the split that its folder stands for."""
    rule: str
    """The convention by which masks were found; empty if there is no mask."""
    unread: tuple[Unread, ...] = ()
    notes: tuple[str, ...] = ()


def find_layouts(source: Path) -> tuple[list[Layout], list[Unread]]:
    """The collections in a folder, and images that belong to none.

    Raises:
        UserError: a folder cannot be read, or masks are found whose images are not known.
    """
    if found := _dataset(source):
        return [_layout(source, *found)], []
    inner = {folder: found for folder in subfolders(source) if (found := _dataset(folder))}
    if inner and _are_splits(folder.name for folder in inner) and not any(map(_has_splits, inner)):
        groups = [
            Group(group.images, group.masks, folder.name, split_of_folder(folder.name))
            for folder, (found_groups, _) in inner.items()
            for group in found_groups
        ]
        return [_layout(source, groups, "one folder per split")], []
    if inner:
        return [_layout(folder, *found) for folder, found in inner.items()], beside_datasets(source, inner)
    images = images_under(source)
    check_no_masks(source, images)
    if two := masks_of_another_folder(source, images):
        raise UserError(
            f"the images in {two[1]} look like masks of those in {two[0]}; give {two[0]} alone, or to 'archive build' "
            f"--images {two[0]} --masks {two[1]}; if they are micrographs, give each folder as a source"
        )
    return [_layout(source, [Group(source)], "")], []


def layout_of(images: Path, masks: Path) -> Layout:
    """The layout of ``--images DIR --masks DIR``, or an annotation file; UserError if no mask has an image."""
    if not images.is_dir() or not masks.exists():
        missing = masks if images.is_dir() else images
        raise UserError(f"{missing} is not a folder; --images and --masks must be folders")
    together = images.resolve().parent == masks.resolve().parent
    group = Group(images, masks) if masks.is_dir() else Group(images, annotations=masks)
    found = _layout(images.parent if together else images, [group], "--images and --masks", beside=False)
    if not found.masks and not found.drawings:
        raise UserError(
            f"no mask in {masks} has the name of an image in {images}; give 0007.tif the mask 0007.png or 0007_mask.png"
        )
    return found


def split_of_folder(name: str) -> str:
    """The split that a folder name stands for, or an empty string."""
    name = name.lower()
    return name if name.startswith("test_") else _SPLIT_FOLDERS.get(name, "")


def _dataset(folder: Path) -> tuple[list[Group], str] | None:
    """The groups of a dataset folder and the convention that it follows; None if it is not one."""
    folders = subfolders(folder)
    masks = subfolder(folder, MASK_FOLDERS)
    if images := subfolder(folder, IMAGE_FOLDERS):
        masks = masks or next((other for other in folders if _annotates(other, images)), None)
        return [Group(images, masks)], f"{images.name}/ + {masks.name}/" if masks else ""
    if pairs := _nnunet(folders):
        return pairs, _NNUNET
    if masks and (images := subfolder(folder, _IMAGE_NAMES)):
        return [Group(images, masks)], f"{images.name}/ + {masks.name}/"
    annotated = {
        images: other
        for images in folders
        for other in folders
        if images != other and _annotates(other, images)
    }
    if annotated:
        others = [path for path in folders if path not in annotated and path not in annotated.values()]
        groups = [
            Group(path, annotated.get(path), path.name, split_of_folder(path.name))
            for path in (*annotated, *others)
            if path in annotated or split_of_folder(path.name)
        ]
        first, mask = next(iter(annotated.items()))
        return groups, f"{first.name}/ + {mask.name}/"
    if masks:
        return _single_folder(folder, masks)
    return None


def _single_folder(folder: Path, masks: Path) -> tuple[list[Group], str] | None:
    """Images of any folder name, or in the folder itself, beside a mask folder, if at least one has a mask."""
    others = [path for path in subfolders(folder) if path != masks and images_under(path)]
    loose = loose_images(folder)
    if bool(loose) + len(others) != 1:
        return None
    group = Group(folder, masks, loose=True) if loose else Group(others[0], masks)
    found = _layout(folder, [group], "")
    if not found.masks and not found.drawings:
        return None
    return [group], f"images beside {masks.name}/" if loose else f"{others[0].name}/ + {masks.name}/"


def _nnunet(folders: Sequence[Path]) -> list[Group]:
    by_name = {path.name.lower(): path for path in folders}
    groups = [
        Group(by_name[f"images{end}"], by_name.get(f"labels{end}"), "", split)
        for end, split in (("tr", "train"), ("va", "val"), ("val", "val"), ("ts", "test"))
        if f"images{end}" in by_name
    ]
    return groups if any(group.masks for group in groups) else []


def _annotates(masks: Path, images: Path) -> bool:
    """Whether a folder is named after another, as train_annot is after train."""
    match = MASK_SUFFIX.fullmatch(masks.name)
    return match is not None and match[1].lower() == images.name.lower()


def _are_splits(names: Iterable[str]) -> bool:
    splits = [split_of_folder(name) for name in names]
    return "train" in splits and all(splits)


def _has_splits(folder: Path) -> bool:
    return (folder / SPLITS_FILE).is_file()


def _layout(folder: Path, groups: Sequence[Group], rule: str, *, beside: bool = True) -> Layout:
    images: dict[str, Path] = {}
    masks: dict[str, tuple[Path, ...]] = {}
    strays: list[Path] = []
    splits: dict[str, str] = {}
    for group in groups:
        found = loose_images(group.images) if group.loose else images_under(group.images)
        names = {_named(group, path, group.images): path for path in found}
        images |= names
        splits |= dict.fromkeys(names, group.split) if group.split else {}
        if group.masks is not None:
            files = {_named(group, path, group.masks): path for path in images_under(group.masks)}
            paired, alone = pair(list(names), files)
            masks |= paired
            strays += alone
    predictions = {name: path for name, path in images.items() if is_prediction(path)}
    images = {name: path for name, path in images.items() if name not in predictions}
    channels = _other_channels(images) if rule == _NNUNET else {}
    images = {name: path for name, path in images.items() if name not in channels}
    if not masks and (masks := in_one_folder(images)):
        taken = {path for some in masks.values() for path in some}
        images = {name: path for name, path in images.items() if path not in taken}
        name, (mask, *_) = next(iter(masks.items()))
        rule = f"{images[name].name} + {mask.name}"
    inside = {name: split_of_folder(PurePosixPath(name).parts[0]) for name in images if "/" in name}
    if not splits and "train" in inside.values():
        splits = {name: split for name, split in inside.items() if split}
    used = {path for group in groups for path in (group.images, group.masks) if path is not None}
    given = [group.annotations for group in groups if group.annotations is not None]
    folders = [path for group in groups for path in (None if group.loose else group.images, group.masks)]
    places = given or [path for path in folders if path is not None]
    unmasked = {name: path for name, path in images.items() if name not in masks}
    drawings = find_drawings(None if given else folder, places, unmasked)
    if drawings.of_image:
        kinds = f"shapes of {' and '.join(drawings.formats)}"
        rule = f"{rule}; {kinds}" if masks else kinds
    reported = {path for one in drawings.unread for path in one.images}
    unread = [*drawings.unread, *foreign_files(folder, used, drawings.used | reported)]
    if predictions:
        reason = (
            "'predict' wrote them; move them away, or copy class indices that are right into a mask folder"
        )
        unread.append(Unread(folder, tuple(predictions.values()), reason))
    if channels:
        reason = "they are further channels of the images _0000; add them as a separate source"
        unread.append(Unread(folder, tuple(channels.values()), reason))
    if beside and folder not in used:
        unread += beside_dataset(folder, used, groups[0].masks)
    base = groups[0].images if len(groups) == 1 else folder
    splits = {name: splits[name] for name in images if name in splits}
    return Layout(
        folder, base, dict(sorted(images.items())), masks, drawings.of_image, drawings.labels, tuple(strays), splits, rule,
        tuple(unread), drawings.notes,
    )  # fmt: skip


def _other_channels(images: Mapping[str, Path]) -> dict[str, Path]:
    """Images ``x_0001`` beside ``x_0000``, which nnU-Net takes for channels of one image."""
    stems = {PurePosixPath(name).stem for name in images}
    return {
        name: path
        for name, path in images.items()
        if re.fullmatch(r".+_\d{4}", path.stem)
        and not path.stem.endswith("_0000")
        and f"{path.stem[:-5]}_0000" in stems
    }


def _named(group: Group, path: Path, base: Path) -> str:
    name = path.relative_to(base).as_posix()
    return f"{group.prefix}/{name}" if group.prefix else name

"""The annotated images that a network or a pixel classifier learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive import Archive, Collection, ImageRecord, Window
from pscl_hpc.archive.windows import covering_square, restrict
from pscl_hpc.config import DataConfig
from pscl_hpc.errors import UserError
from pscl_hpc.segmentation.classes import ClassList


class AnnotatedConfig(Protocol):
    """The keys that name the annotated images of a run."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def references(self) -> tuple[str, ...]: ...
    @property
    def square(self) -> int: ...


_PLACES = 4096
"""Pixels of a class among which a window is placed; more would only cost memory."""


@dataclass(frozen=True)
class Annotations:
    """Annotated images to learn from, and their classes."""

    collection: Collection
    classes: ClassList
    references: tuple[ImageRecord, ...]
    pixels: npt.NDArray[np.int64]
    """Annotated pixels of each class in the references, ignored classes 0."""

    def masks(self, archive: Archive, square: int) -> list[npt.NDArray[np.uint8]]:
        """The used annotation of each reference (h, w): all of it, or that in a square of this side."""
        found = []
        for record in self.references:
            mask = self.classes.without_ignored(archive.read_mask(record.index))
            region = annotated_region(archive, record, self.classes, square)
            found.append(mask if region is None else restrict(mask, (0, 0, *mask.shape), region))
        return found

    def warnings(self) -> list[str]:
        """A sentence for the user if a class is not shown."""
        if not self.unseen:
            return []
        names = ", ".join(record.id for record in self.references)
        missing = " and ".join(self.unseen)
        return [
            f"warning: {names} shows no pixel of {missing}, so the model cannot predict it; add a reference"
        ]

    @property
    def unseen(self) -> tuple[str, ...]:
        """Classes that no reference shows, so that they are not learned."""
        return tuple(self.classes.names[index] for index in self.classes.kept if not self.pixels[index])


def select_annotations(config: AnnotatedConfig, archive: Archive, validation: str = "") -> Annotations:
    """Find and check the references of a run.

    Args:
        config: The run.
        archive: Open archive.
        validation: The split that chooses its checkpoint; empty: none.

    Raises:
        UserError: a reference, split or excluded specimen is unknown; a reference has no annotated pixel, is in a split
            that must not be trained on or in another collection than the first.
    """
    archive.check_names(splits=config.data.splits, specimens=config.data.exclude_specimens)
    references = tuple(archive.find(name) for name in config.references)
    collection = archive.collections[references[0].dataset]
    for record in references:
        _check_reference(record, collection, config, archive, validation)
    classes = class_list(collection, archive)
    pixels = np.zeros(classes.count, np.int64)
    for record in references:
        region = annotated_region(archive, record, classes, config.square)
        found = count_classes(archive, record, classes, region)
        if not found.sum():
            raise UserError(
                f"references: {record.id} has no pixel annotated with a class that is not ignored; choose another image"
            )
        pixels += found
    return Annotations(collection, classes, references, pixels)


def class_list(collection: Collection, archive: Archive) -> ClassList:
    """The classes of a collection; UserError when fewer than two are not ignored."""
    try:
        return ClassList.of(collection)
    except ValueError as error:
        named = len(collection.classes) > 1
        fix = "take a class out of its ignore_classes" if named else "name its classes"
        raise UserError(
            f"{archive.path}: collection {collection.name} cannot be segmented ({error}); {fix} when the archive is built"
        ) from None


def annotated_region(archive: Archive, record: ImageRecord, classes: ClassList, square: int) -> Window | None:
    """The region of a reference whose annotation is used: a square of this side; None, with 0, for all of it."""
    if not square:
        return None
    return covering_square(archive.read_mask(record.index), classes.kept, square)


def count_classes(
    archive: Archive, record: ImageRecord, classes: ClassList, region: Window | None = None
) -> npt.NDArray[np.int64]:
    """Annotated pixels of each class in one mask or in a region of it, ignored classes 0: (classes,)."""
    mask = _annotated(archive, record, classes, region)
    return np.bincount(mask.reshape(-1), minlength=256)[: classes.count].astype(np.int64)


def class_pixels(
    archive: Archive, record: ImageRecord, classes: ClassList, region: Window | None = None
) -> list[npt.NDArray[np.int64]]:
    """Rows and columns (n, 2) of annotated pixels of each class that a mask or a region of it shows, evenly chosen."""
    mask = _annotated(archive, record, classes, region)
    found = (np.flatnonzero(mask == index) for index in range(classes.count))
    return [
        np.stack(np.unravel_index(_evenly(places, _PLACES), mask.shape), axis=1)
        for places in found
        if len(places)
    ]


def _evenly(places: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    if len(places) <= most:
        return places
    return places[np.arange(most) * len(places) // most]


def _annotated(
    archive: Archive, record: ImageRecord, classes: ClassList, region: Window | None
) -> npt.NDArray[np.uint8]:
    """A mask (h, w) without ignored classes, and 255 outside the region."""
    mask = classes.without_ignored(archive.read_mask(record.index))
    return mask if region is None else restrict(mask, (0, 0, *mask.shape), region)


def _check_reference(
    record: ImageRecord, collection: Collection, config: AnnotatedConfig, archive: Archive, validation: str
) -> None:
    if record.dataset != collection.name:
        raise UserError(
            f"references: {record.id} is not in the collection {collection.name} of the first one; "
            "name references of one collection"
        )
    if config.data.datasets is not None and record.dataset not in config.data.datasets:
        raise UserError(f"references: {record.id} is not in data.datasets; add {record.dataset} there")
    held_out = record.split.startswith("test") or (record.split and record.split == validation)
    if held_out or record.split not in config.data.splits:
        usable = [found.id for found in archive.select(splits=config.data.splits, has_mask=True)]
        advised = [name for name in collection.references if name in usable]
        example = f", for example {advised[0]}" if advised else ""
        raise UserError(
            f"references: {record.id} is in the split '{record.split}', which is not for training; "
            f"choose an image of the splits {list(config.data.splits)}{example}"
        )
    if record.specimen and record.specimen in config.data.exclude_specimens:
        raise UserError(
            f"references: {record.id} shows the specimen {record.specimen}, which data.exclude_specimens "
            "excludes; remove one of the two"
        )
    if not record.has_mask:
        raise UserError(f"references: {record.id} has no mask in {archive.path}; choose an annotated image")

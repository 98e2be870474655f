"""The annotated and unlabelled images of a fine-tuning, and random windows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pscl_hpc.archive import IGNORE_INDEX, Archive, Collection, ImageRecord
from pscl_hpc.errors import UserError
from pscl_hpc.models import TrunkConfig
from pscl_hpc.seeding import Slots, numpy_generator
from pscl_hpc.segmentation.annotations import (
    Annotations,
    annotated_region,
    class_pixels,
    count_classes,
    select_annotations,
)
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.placement import Placement, cut_window
from pscl_hpc.segmentation.semi_supervised import SemiSupervisedConfig

_TRIES = 16
"""Windows drawn until one shows an annotated pixel."""


@dataclass(frozen=True)
class FinetuneData(Annotations):
    """Images and classes of a fine-tuning."""

    validation: tuple[ImageRecord, ...]


def select_data(config: FinetuneConfig, archive: Archive) -> FinetuneData:
    """Find and check references and validation images.

    Raises:
        UserError: see :func:`select_annotations`; or all references show only one class, there are no validation
            images, or the number of class weights is wrong.
    """
    found = select_annotations(config, archive, config.validation_split)
    rule = config.loss.class_weights
    if not isinstance(rule, str) and len(rule) != found.classes.count:
        raise UserError(
            f"loss.class_weights has {len(rule)} values, but {found.collection.name} has {found.classes.count} classes; "
            f"give one for each of: {', '.join(found.classes.names)}"
        )
    shown = [found.classes.names[index] for index in found.classes.kept if found.pixels[index]]
    if len(shown) < 2:
        raise UserError(
            f"references: {', '.join(config.references)} shows only the class {shown[0]!r}, from which no other can be "
            "told; choose an image with pixels of several classes"
        )
    validation = _select_validation(config, archive, found.collection, found.classes)
    return FinetuneData(found.collection, found.classes, found.references, found.pixels, validation)


def select_unlabelled(
    config: FinetuneConfig, settings: SemiSupervisedConfig, archive: Archive, home: str
) -> Sequence[ImageRecord]:
    """The images to train on without masks; by default those of ``home``, the collection of the references.

    The references are included: their pixels that are not annotated are unlabelled, too.

    Raises:
        UserError: a split for scoring or one that is not in the archive is named, or no image is selected.
    """
    key = "data.splits" if settings.splits is None else "semi_supervised.splits"
    splits = config.data.splits if settings.splits is None else settings.splits
    for split in splits:
        if split.startswith(("val", "test")) or (split and split == config.validation_split):
            raise UserError(
                f"{key}: '{split}' is for scoring, but semi-supervised fine-tuning would train on its images; "
                "name training splits in semi_supervised.splits"
            )
    archive.check_names(splits=splits, key=key)
    datasets = (home,) if settings.datasets is None else settings.datasets
    found = archive.select(datasets=datasets, splits=splits, without_specimens=config.data.exclude_specimens)
    if not found:
        raise UserError(
            f"semi_supervised: {archive.path} has no image of the datasets {list(datasets)} in the splits "
            f"{list(splits)}; set semi_supervised.datasets or semi_supervised.splits"
        )
    return found


def _select_validation(
    config: FinetuneConfig, archive: Archive, collection: Collection, classes: ClassList
) -> tuple[ImageRecord, ...]:
    split = config.validation_split
    if not split:
        return ()
    if split.startswith("test"):
        raise UserError(
            f"validation_split is '{split}': test images must not choose the checkpoint; "
            'name another split, or "" to keep the last checkpoint'
        )
    found = [
        record
        for record in archive.select(
            datasets=[collection.name],
            splits=[split],
            has_mask=True,
            without_specimens=config.data.exclude_specimens,
        )
        if record.id not in config.references
    ]
    foreground = list(classes.foreground)
    if not any(count_classes(archive, record, classes)[foreground].any() for record in found):
        what = "shows no foreground class" if found else "has no image with a mask"
        raise UserError(
            f"validation_split '{split}' of {collection.name} {what}; name another split, "
            'or "" to keep the last checkpoint'
        )
    return tuple(found)


class Windows(NamedTuple):
    """One training batch."""

    images: Tensor
    """(B, C, h, w) float32 in 0..1."""
    targets: Tensor
    """(B, h, w) uint8 class indices; 255 where not annotated or ignored."""
    ids: list[str]
    """The image of each window."""
    slots: Slots
    """Slot of each window in the batch of all ranks."""


def rank_slots(count: int, key: str, rank: int, ranks: int) -> tuple[int, ...]:
    """The slots of a batch of ``count`` windows that belong to a rank: every ``ranks``-th one.

    Raises:
        UserError: the ranks cannot have equal shares; it names ``key``, the setting of ``count``.
    """
    if count % ranks:
        raise UserError(
            f"{key} ({count}) cannot be divided among {ranks} ranks; set {key}={-(-count // ranks) * ranks}, or "
            f"another multiple of {ranks}"
        )
    return tuple(range(rank, count, ranks))


class WindowDataset(Dataset[Windows]):
    """Batches by step: random windows of the references, then, in semi-supervised training, of unlabelled images.

    Each window is a function of (seed, step, slot in its part of the batch), see
    :mod:`~pscl_hpc.segmentation.placement`. When only a square of a reference is annotated, windows contain it or,
    when they are smaller, are inside it. Unlabelled windows have targets of 255; masks of their images are not used.

    Args:
        archive: Open archive.
        references: Annotated images.
        classes: Of their collection.
        config: The run.
        trunk: Decides channels and standardisation of the windows.
        unlabelled: Images of the unlabelled windows; needed when ``config.semi_supervised`` is set.
        resize: Factor by which images are resized for the network.
        rank: The rank whose share of each batch is read.
        ranks: Number of ranks among which each batch is divided.

    Raises:
        UserError: the batch cannot be divided equally.
    """

    def __init__(
        self,
        archive: Archive,
        references: Sequence[ImageRecord],
        classes: ClassList,
        config: FinetuneConfig,
        *,
        trunk: TrunkConfig,
        unlabelled: Sequence[ImageRecord] = (),
        resize: float = 1.0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.archive = archive
        self.references = tuple(references)
        self.unlabelled = unlabelled
        self.classes = classes
        self.config = config
        self.trunk = trunk
        self.resize = resize
        annotated, mixed = (
            config.batch_size,
            config.semi_supervised.batch_size if config.semi_supervised else 0,
        )
        places = [
            *rank_slots(annotated, "batch_size", rank, ranks),
            *(annotated + slot for slot in rank_slots(mixed, "semi_supervised.batch_size", rank, ranks)),
        ]
        self.slots = Slots(tuple(places), annotated + mixed)
        self.regions = {
            record.id: annotated_region(archive, record, classes, config.square) for record in self.references
        }
        self.class_pixels = {
            record.id: class_pixels(archive, record, classes, self.regions[record.id])
            for record in self.references
            if config.oversample
        }

    def __len__(self) -> int:
        return self.config.schedule.steps

    def __getitem__(self, step: int) -> Windows:
        cut = [self._window(step, slot) for slot in self.slots.places]
        images = torch.from_numpy(np.stack([image for image, _, _ in cut]))
        targets = torch.from_numpy(np.stack([target for _, target, _ in cut]))
        return Windows(images, targets, [name for _, _, name in cut], self.slots)

    def image_ids(self, step: int) -> list[str]:
        """The images of the batch of all ranks."""
        return [self._draw(step, slot)[0].id for slot in range(self.slots.total)]

    def _draw(self, step: int, slot: int) -> tuple[ImageRecord, np.random.Generator]:
        """The image in a slot, and the generator for all further draws."""
        images: Sequence[ImageRecord] = self.references
        purpose, first = "window", 0
        if slot >= self.config.batch_size:
            purpose, images, first = "unlabelled window", self.unlabelled, self.config.batch_size
        rng = numpy_generator(self.config.seed, purpose, step, slot - first)
        return images[int(rng.integers(len(images)))], rng

    def _window(self, step: int, slot: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], str]:
        record, rng = self._draw(step, slot)
        placement = Placement.draw(self.config, rng, self.resize)
        annotated = slot < self.config.batch_size
        region = self.regions[record.id] if annotated else None
        pixel = self._pixel(record, rng) if annotated and self.config.oversample else None
        for _ in range(_TRIES if annotated else 1):
            image, mask = cut_window(
                self.archive, record, placement, self.config.crop, self.trunk, rng, region, pixel
            )
            target = self.classes.without_ignored(mask) if annotated else np.full_like(mask, IGNORE_INDEX)
            if (target != IGNORE_INDEX).any():
                break
        return image, target, record.id

    def _pixel(self, record: ImageRecord, rng: np.random.Generator) -> tuple[int, int] | None:
        """With the configured probability, a pixel of a random class."""
        if rng.random() >= self.config.oversample:
            return None
        of_classes = self.class_pixels[record.id]
        places = of_classes[int(rng.integers(len(of_classes)))]
        row, column = places[int(rng.integers(len(places)))]
        return int(row), int(column)

"""Batches of pretraining: images, windows and references as functions of seed and step.

The batch of all ranks has slots: R references first, then the images. Reference ``g`` and image ``g`` belong to rank
``g % ranks``. Random numbers are keyed by the slot, not by the rank, so any number of ranks computes the same batch.
Reference ``r`` gives the templates of every R-th image, so each image is on the rank of its reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pscl_hpc.archive import Archive, ImageRecord, Window, epoch_order
from pscl_hpc.archive.windows import covering_square, draw_window, read_window, restrict
from pscl_hpc.errors import UserError
from pscl_hpc.methods import ReferenceConfig, ReferencedMethodConfig, Setting, Views
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.seeding import Slots, numpy_generator, torch_generator
from pscl_hpc.views import draw_geometry, jitter, warp

_REFERENCE_WINDOWS = 16
"""Windows of a reference from which the one with the most classes is taken."""


@dataclass(frozen=True)
class Batch:
    """Windows of one forward pass, references first, before any augmentation."""

    images: Tensor
    """(B, C, h, w) float32 in 0..1."""
    labels: Tensor
    """(B, h, w) uint8, 255 where unknown."""
    comparable: Tensor
    """bool (B,): the image belongs to the collection of the references."""
    references: int
    """Number of references at the front."""
    production_batches: Tensor
    """int64 (B,): production batch, as in ``Views``."""
    slots: Slots
    """Slot of each image in the batch of all ranks."""
    ids: tuple[str, ...]
    """Archive ids, (B,)."""

    def pin_memory(self) -> Batch:
        """The batch in pinned memory; called by torch's ``DataLoader``."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            comparable=self.comparable.pin_memory(),
            production_batches=self.production_batches.pin_memory(),
        )


class PretrainData(Dataset[Batch]):
    """Batches by number: item ``step * accumulate + pass`` is one forward pass of this rank.

    With ``accumulate=exact`` the batch of a step is divided into parts as if each were a rank of its own, of which rank
    r of W has the parts r, r + W, ...; item ``step * parts_here + part`` is one of them.

    Args:
        archive: Open archive.
        config: Run configuration.
        rank: The rank whose share of each batch is read.
        ranks: Number of ranks among which each batch is divided.

    Raises:
        UserError: no image is selected; a reference is unknown, has no mask, or belongs to a split that must not be
            trained on; a split or an excluded specimen is unknown; a batch cannot be divided equally.
    """

    def __init__(self, archive: Archive, config: PretrainConfig, rank: int = 0, ranks: int = 1) -> None:
        self.archive = archive
        self.config = config
        _check_even(config, ranks)
        self.references = _find_references(archive, config)
        self.regions = {record.id: self._annotated_region(record) for record in self.references}
        self.records = self._select()
        found = {record.production_batch for record in self.references}
        found |= set(archive.values("condition", self.records))
        self.production_batches = tuple(sorted(found - {""}))
        self._order = (-1, np.empty(0, np.int64))
        self._per_batch = config.references_per_pass
        exact = config.accumulate == "exact"
        total = config.parts if exact else ranks
        self._slots = tuple(self._slots_of(part, total) for part in range(rank, total, ranks))
        self.parts_here = len(self._slots)
        """Parts of this rank in one pass."""

    @property
    def setting(self) -> Setting:
        """Facts about the images for the method."""
        home = self.archive.collections[self.references[0].dataset] if self.references else None
        config = self.config
        return Setting(home, self.production_batches, config.images_per_step, config.runtime.kernels)

    def __len__(self) -> int:
        return self.config.schedule.steps * self.config.passes * self.parts_here

    def _slots_of(self, part: int, parts: int) -> Slots:
        """The slots of one of so many equal parts of the batch."""
        own = [*range(part, self._per_batch, parts)]
        own += [self._per_batch + image for image in range(part, self.config.images_per_pass, parts)]
        return Slots(tuple(own), self._per_batch + self.config.images_per_pass)

    def __getitem__(self, number: int) -> Batch:
        number, part = divmod(number, self.parts_here)
        slots = self._slots[part]
        size, channels = self.config.views.size, self.config.model.in_channels
        records = [self._record(number, slot) for slot in slots.places]
        references = sum(slot < self._per_batch for slot in slots.places)
        pairs = []
        for place, (slot, record) in enumerate(zip(slots.places, records, strict=True)):
            random = numpy_generator(self.config.seed, "windows", number, slot)
            region = None
            if place < references:
                region = self.regions[record.id]
                window = self._reference_window(record, random)
            else:
                window = draw_window(record, size, random)
            pairs.append(
                read_window(
                    self.archive,
                    record,
                    window,
                    size,
                    channels=channels,
                    standardise=self.config.model.standardise,
                    region=region,
                )
            )
        home = self.references[0].dataset if self.references else ""
        return Batch(
            images=torch.from_numpy(np.stack([image for image, _ in pairs])),
            labels=torch.from_numpy(np.stack([mask for _, mask in pairs])),
            comparable=torch.tensor([record.dataset == home for record in records]),
            references=references,
            production_batches=torch.tensor([self._production_batch(record) for record in records]),
            slots=slots,
            ids=tuple(record.id for record in records),
        )

    def ids(self, number: int) -> tuple[str, ...]:
        """Archive ids of the whole batch of all ranks that item ``number`` belongs to."""
        total = self._per_batch + self.config.images_per_pass
        return tuple(self._record(number // self.parts_here, slot).id for slot in range(total))

    def _production_batch(self, record: ImageRecord) -> int:
        return self.production_batches.index(record.production_batch) if record.production_batch else -1

    def _position(self, count: int) -> int:
        """Index of the ``count``-th image of the endless stream of shuffled epochs.

        An epoch omits its last images when they do not fill a whole pass, so that no pass has an image twice, unless
        there are fewer images than slots.
        """
        total = len(self.records)
        usable = (
            total - total % self.config.images_per_pass if total >= self.config.images_per_pass else total
        )
        epoch, place = divmod(count, usable)
        return int(self._epoch(epoch)[place])

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.records), seed=self.config.seed, epoch=epoch))
        return self._order[1]

    def _select(self) -> Sequence[ImageRecord]:
        data = self.config.data
        self.archive.check_names(splits=data.splits, specimens=data.exclude_specimens)
        alone = self.references and not _reference_config(self.config).in_pool
        found = self.archive.select(
            datasets=data.datasets,
            splits=data.splits,
            without_specimens=data.exclude_specimens,
            without=self.references if alone else (),
        )
        if not found:
            splits = self.archive.values("split")
            raise UserError(
                f"{self.archive.path}: the splits {list(data.splits)} of the chosen datasets hold no image besides the "
                f"references; the archive has the splits {splits}, set data.splits"
            )
        return found

    def _record(self, number: int, slot: int) -> ImageRecord:
        """The image in a slot of the batch of all ranks."""
        if slot >= self._per_batch:
            return self.records[self._position(number * self.config.images_per_pass + slot - self._per_batch)]
        places = numpy_generator(self.config.seed, "references", number).permutation(len(self.references))
        return self.references[int(places[slot % len(places)])]

    def _wanted(self, record: ImageRecord) -> list[int]:
        """Classes of an image's collection that are not ignored."""
        collection = self.archive.collections[record.dataset]
        return [c for c in range(len(collection.classes)) if c not in collection.ignore_classes]

    def _annotated_region(self, record: ImageRecord) -> Window | None:
        """The region of a reference whose annotation is used; None: all of it."""
        side = _reference_config(self.config).square
        return (
            covering_square(self.archive.read_mask(record.index), self._wanted(record), side)
            if side
            else None
        )

    def _reference_window(self, record: ImageRecord, random: np.random.Generator) -> Window:
        size = self.config.views.size
        region = self.regions[record.id]
        windows = [draw_window(record, size, random, region) for _ in range(_REFERENCE_WINDOWS)]
        if _reference_config(self.config).crop == "random":
            return windows[0]
        wanted = self._wanted(record)
        counts = []
        for window in windows:
            mask = self.archive.read_mask(record.index, window)
            if region is not None:
                mask = restrict(mask, window, region)
            counts.append(np.bincount(mask.ravel(), minlength=256))
        # The window with the most classes; among equals the one with most of its rarest class.
        scores = [
            (int((n[wanted] > 0).sum()), int(np.sort(n[wanted][n[wanted] > 0])[:1].sum())) for n in counts
        ]
        return windows[max(range(len(windows)), key=lambda i: scores[i])]


def make_views(batch: Batch, config: PretrainConfig, number: int, device: torch.device) -> Views:
    """Two augmented views of a batch on ``device``. ``number`` keys the random draws."""
    random = torch_generator(config.seed, "views", number)
    images = batch.images.to(device, non_blocking=True)
    slots = batch.slots
    geometry = draw_geometry(slots.total, config.views, random)[list(slots.places)].to(device)
    query = jitter(images, config.views.jitter, random, slots)
    key = warp(jitter(images, config.views.jitter, random, slots), geometry)
    return Views(
        query=query,
        key=key,
        geometry=geometry,
        references=batch.references,
        labels=batch.labels.to(device, non_blocking=True),
        comparable=batch.comparable.to(device, non_blocking=True),
        production_batches=batch.production_batches.to(device, non_blocking=True),
    )


def _check_even(config: PretrainConfig, ranks: int) -> None:
    """UserError when the ranks cannot have equal shares of a batch."""
    if config.accumulate == "exact":
        if config.parts % ranks:
            raise UserError(
                f"with accumulate=exact the {config.parts} parts of a batch (batch_size / part_size) cannot be divided "
                f"among {ranks} ranks; set batch_size={ranks * -(-config.parts // ranks) * config.part_size}"
            )
        return
    parts = ranks * config.accumulate
    if config.batch_size % parts:
        better = max(parts, round(config.batch_size / parts) * parts)
        raise UserError(
            f"batch_size ({config.batch_size}) cannot be divided among {ranks} ranks x accumulate={config.accumulate}; "
            f"set batch_size={better}, or another multiple of {parts}"
        )
    own, smallest = config.batch_size // parts, config.method.smallest_per_rank
    if own < smallest and not config.runtime.sync_batchnorm:
        raise UserError(
            f"batch_size ({config.batch_size}) leaves {own} image for each of {ranks} ranks in a forward pass, and "
            f"{config.method.name} needs {smallest} for batch statistics; set runtime.sync_batchnorm=true or "
            f"batch_size={smallest * parts}"
        )
    if isinstance(config.method, ReferencedMethodConfig) and config.method.reference.per_batch % ranks:
        better = -(-config.method.reference.per_batch // ranks) * ranks
        raise UserError(
            f"method.reference.per_batch ({config.method.reference.per_batch}) cannot be divided among {ranks} ranks; "
            f"set method.reference.per_batch={better}"
        )


def _reference_config(config: PretrainConfig) -> ReferenceConfig:
    if not isinstance(config.method, ReferencedMethodConfig):
        raise ValueError(f"{config.method.name} has no references")
    return config.method.reference


def _find_references(archive: Archive, config: PretrainConfig) -> list[ImageRecord]:
    if not isinstance(config.method, ReferencedMethodConfig):
        return []
    found = [archive.find(image_id) for image_id in config.method.reference.ids]
    for record in found:
        if not record.has_mask:
            raise UserError(
                f"method.reference.ids: {record.id} has no mask in {archive.path}; name an annotated image"
            )
        if record.split not in ("", "train"):
            raise UserError(
                f"method.reference.ids: {record.id} is in the split '{record.split}', which is for scoring only; "
                "name an annotated training image"
            )
        if record.specimen and record.specimen in config.data.exclude_specimens:
            raise UserError(
                f"method.reference.ids: {record.id} shows the specimen {record.specimen}, which data.exclude_specimens "
                "excludes; remove one of the two"
            )
        if record.dataset != found[0].dataset:
            raise UserError(
                f"method.reference.ids: {found[0].id} and {record.id} belong to different datasets, whose classes "
                "differ; name references of one dataset"
            )
    return found

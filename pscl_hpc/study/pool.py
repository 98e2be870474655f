"""Which images a pretraining learns from, and the refusal of any that score the result."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.config import FinetuneConfig, PretrainConfig
from pscl_hpc.errors import UserError
from pscl_hpc.segmentation.unlabelled import select_unlabelled

HELD_OUT = ("test", "val")
"""Splits whose names begin so choose checkpoints or score; nothing is ever learnt from them."""


@dataclass(frozen=True)
class Pool:
    """The images of a pretraining, by data set and split."""

    counts: tuple[tuple[str, str, int], ...]
    """Data set, split, images."""

    @property
    def images(self) -> int:
        """All of them."""
        return sum(count for _, _, count in self.counts)

    def sentence(self) -> str:
        """For a table."""
        parts = [f"{name} ({split or 'no split'}) {count}" for name, split, count in self.counts]
        return f"{self.images} images: {', '.join(parts)}"


def check_pool(
    archive: Archive, config: PretrainConfig | FinetuneConfig, *, validation_split: str, source: str
) -> Pool:
    """The images that a run may learn from.

    Args:
        archive: Open archive.
        config: The run; its ``data`` names the images.
        validation_split: The split that chooses the checkpoints of the study.
        source: Names the run in errors.

    Raises:
        UserError: an image of the pool is of a test or validation split, or has the same pixels as one that is.
    """
    held_out = {validation_split} - {""}

    def scores(split: str) -> bool:
        return split in held_out or split.startswith(HELD_OUT)

    for split in config.data.splits:
        if scores(split):
            raise UserError(
                f"{source}: data.splits has '{split}', whose images choose or score the models; "
                "pretrain on training and unlabelled images only"
            )
    found = _learnt(archive, config)
    secret = {
        row.pixel_checksum: record.id
        for row, record in zip(archive.rows, archive.records, strict=True)
        if scores(record.split)
    }
    for record in found:
        twin = secret.get(archive.rows[record.index].pixel_checksum)
        if twin is not None:
            raise UserError(
                f"{source}: {record.id} of the pool has the same pixels as {twin}, which chooses or scores models; "
                "leave one of them out of the archive ('pscl-hpc archive check' lists such pairs)"
            )
    counts = Counter((record.dataset, record.split) for record in found)
    return Pool(tuple((*key, counts[key]) for key in sorted(counts)))


def _learnt(archive: Archive, config: PretrainConfig | FinetuneConfig) -> list[ImageRecord]:
    """The images that a run learns from; a fine-tuning from its references and, semi-supervised, unlabelled ones."""
    if isinstance(config, FinetuneConfig):
        found = [archive.find(name) for name in config.references]
        if config.semi_supervised is not None:
            found += select_unlabelled(config, config.semi_supervised, archive, found[0].dataset)
        return found
    excluded = config.data.exclude_specimens
    return [
        record
        for record in archive.select(datasets=config.data.datasets, splits=config.data.splits)
        if not (record.specimen and record.specimen in excluded)
    ]

"""Which images a pretraining learns from, and the refusal of any that score the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.config import FinetuneConfig, PretrainConfig, ReferencedMethod
from pscl_hpc.errors import UserError
from pscl_hpc.segmentation.data import select_unlabelled

HELD_OUT = ("test", "val")
"""Splits whose names begin so choose checkpoints or score; nothing is ever learnt from them."""


@dataclass(frozen=True)
class Pool:
    """The images of a pretraining, by data set and split."""

    counts: tuple[tuple[str, str, int], ...]
    """Data set, split, images, of all that ``data`` names."""
    without_own: bool = False
    """The pretraining leaves out its own annotated images, and some are among these."""

    @property
    def images(self) -> int:
        """All of them."""
        return sum(count for _, _, count in self.counts)

    def sentence(self) -> str:
        """For a table."""
        parts = [f"{name} ({split or 'no split'}) {count}" for name, split, count in self.counts]
        less = ", less the annotated images of each pretraining" if self.without_own else ""
        return f"{self.images} images: {', '.join(parts)}{less}"


def check_pool(
    archive: Archive, config: PretrainConfig | FinetuneConfig, *, validation: Collection[str], source: str
) -> Pool:
    """The images that a run may learn from.

    Args:
        archive: Open archive.
        config: The run; its ``data`` names the images.
        validation: The splits that choose the checkpoints of the study.
        source: Names the run in errors.

    Raises:
        UserError: an image of the pool, or an annotated one, is of a test or validation split, or has the same pixels
            as one that is.
    """

    def scores(split: str) -> bool:
        return (split in validation and split != "") or split.startswith(HELD_OUT)

    for split in config.data.splits:
        if scores(split):
            raise UserError(
                f"{source}: data.splits has '{split}', whose images choose or score the models; "
                "pretrain on training and unlabelled images only"
            )
    annotated, pool = _annotated(archive, config), _pool(archive, config)
    for record in (*annotated, *pool):
        if scores(record.split):
            raise UserError(
                f"{source}: {record.id} is of the split '{record.split}', whose images choose or score the models; "
                "name a training image"
            )
    secret = {
        row.pixel_checksum: record.id
        for row, record in zip(archive.rows, archive.records, strict=True)
        if scores(record.split)
    }
    for part, records in (("annotated images", annotated), ("pool", pool)):
        for record in records:
            twin = secret.get(archive.rows[record.index].pixel_checksum)
            if twin is not None:
                raise UserError(
                    f"{source}: {record.id} of the {part} has the same pixels as {twin}, which chooses or scores "
                    "models; leave one of them out of the archive ('pscl-hpc archive check' lists such pairs)"
                )
    counts = Counter((record.dataset, record.split) for record in pool)
    return Pool(
        tuple((*key, counts[key]) for key in sorted(counts)),
        without_own=_leaves_out_own(config) and any(record in pool for record in annotated),
    )


def _annotated(archive: Archive, config: PretrainConfig | FinetuneConfig) -> list[ImageRecord]:
    """The images whose annotation a run learns from."""
    if isinstance(config, FinetuneConfig):
        names = config.references
    else:
        names = config.method.reference.ids if isinstance(config.method, ReferencedMethod) else ()
    return [archive.find(name) for name in names]


def _leaves_out_own(config: PretrainConfig | FinetuneConfig) -> bool:
    return (
        isinstance(config, PretrainConfig)
        and isinstance(config.method, ReferencedMethod)
        and not config.method.reference.in_pool
    )


def _pool(archive: Archive, config: PretrainConfig | FinetuneConfig) -> Sequence[ImageRecord]:
    """The images that a run learns from without annotation; a fine-tuning has some where it is semi-supervised."""
    if isinstance(config, FinetuneConfig):
        if config.semi_supervised is None:
            return ()
        home = archive.find(config.references[0]).dataset
        return select_unlabelled(config, config.semi_supervised, archive, home)
    excluded = config.data.exclude_specimens
    return [
        record
        for record in archive.select(datasets=config.data.datasets, splits=config.data.splits)
        if not (record.specimen and record.specimen in excluded)
    ]

"""The images that a run learns from; images that score the result are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.errors import UserError
from pscl_hpc.methods import ReferenceConfig, ReferencedMethodConfig
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.results.study import PoolPart
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.data import select_unlabelled
from pscl_hpc.segmentation.evaluate import SegmentationConfig

HELD_OUT = ("test", "val")
"""Splits with these prefixes score models or choose checkpoints; nothing is ever learnt from them."""


@dataclass(frozen=True)
class Pool:
    """The images named by ``data`` of a pretraining, by data set and split."""

    parts: tuple[PoolPart, ...]
    without_own: bool = False
    """The pretraining leaves out its own annotated images, and some are among these."""


def check_pool(
    archive: Archive, config: PretrainConfig | SegmentationConfig, *, validation: Collection[str], source: str
) -> Pool:
    """The images that a run may learn from.

    Args:
        archive: Open archive.
        config: The run; its ``data`` names the images.
        validation: The splits that choose the checkpoints of the study.
        source: Name of the run in errors.

    Raises:
        UserError: an image of the pool, or an annotated one, is in a test or validation split, or has the same pixels
            as an image there.
    """

    def scores(split: str) -> bool:
        return (split in validation and split != "") or split.startswith(HELD_OUT)

    for split in config.data.splits:
        if scores(split):
            raise UserError(
                f"{source}: data.splits has '{split}', whose images choose or score the models; "
                "use training and unlabelled images only"
            )
    reference = reference_of(config)
    names = (
        config.references if isinstance(config, SegmentationConfig) else reference.ids if reference else ()
    )
    annotated, pool = [archive.find(name) for name in names], _pool(archive, config)
    for record in (*annotated, *pool):
        if scores(record.split):
            raise UserError(
                f"{source}: {record.id} is in the split '{record.split}', whose images choose or score the models; "
                "name a training image"
            )
    held_out = {
        row.pixel_checksum: record.id
        for row, record in zip(archive.rows, archive.records, strict=True)
        if scores(record.split)
    }
    for part, records in (("annotated images", annotated), ("pool", pool)):
        for record in records:
            twin = held_out.get(archive.rows[record.index].pixel_checksum)
            if twin is not None:
                raise UserError(
                    f"{source}: {record.id} of the {part} has the same pixels as {twin}, which chooses or scores "
                    "models; leave one of them out of the archive ('pscl-hpc archive check' lists such pairs)"
                )
    counts = Counter((record.dataset, record.split) for record in pool)
    parts = (PoolPart(dataset=key[0], split=key[1], images=counts[key]) for key in sorted(counts))
    apart = reference is not None and not reference.in_pool
    return Pool(tuple(parts), without_own=apart and any(record in pool for record in annotated))


def reference_of(config: PretrainConfig | SegmentationConfig) -> ReferenceConfig | None:
    """The annotated images that a pretraining uses; None where its method uses none, and for other runs."""
    if isinstance(config, SegmentationConfig) or not isinstance(config.method, ReferencedMethodConfig):
        return None
    return config.method.reference


def _pool(archive: Archive, config: PretrainConfig | SegmentationConfig) -> Sequence[ImageRecord]:
    """The images that a run learns from without annotation; in fine-tuning only a semi-supervised one has some."""
    if isinstance(config, ClassifierConfig):
        return ()
    if isinstance(config, FinetuneConfig):
        if config.semi_supervised is None:
            return ()
        home = archive.find(config.references[0]).dataset
        return select_unlabelled(config, config.semi_supervised, archive, home)
    return archive.select(
        datasets=config.data.datasets,
        splits=config.data.splits,
        without_specimens=config.data.exclude_specimens,
    )

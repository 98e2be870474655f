"""The images that a run learns from; images that score the result are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.archive.catalogue import positions
from pscl_hpc.errors import UserError
from pscl_hpc.methods import ReferenceConfig, ReferencedMethodConfig
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.results.study import PoolPart
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.data import select_unlabelled
from pscl_hpc.segmentation.trained import SegmentationConfig

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
    for records in (annotated, pool):
        for split in archive.values("split", records):
            if scores(split):
                name = next(record.id for record in records if record.split == split)
                raise UserError(
                    f"{source}: {name} is in the split '{split}', whose images choose or score the models; "
                    "name a training image"
                )
    for part, records in (("annotated images", annotated), ("pool", pool)):
        twins = _held_out_twin(archive, records, [name for name in archive.values("split") if scores(name)])
        if twins is not None:
            raise UserError(
                f"{source}: {twins[0].id} of the {part} has the same pixels as {twins[1].id}, which chooses or scores "
                "models; leave one of them out of the archive ('pscl-hpc archive check' lists such pairs)"
            )
    chosen = positions(pool)
    named = [archive.coded(column) for column in ("dataset", "split")]
    keys = zip(*(codes[chosen].tolist() for _, codes in named), strict=True)
    counts = Counter(
        {(named[0][0][one], named[1][0][two]): count for (one, two), count in Counter(keys).items()}
    )
    parts = (PoolPart(dataset=key[0], split=key[1], images=counts[key]) for key in sorted(counts))
    apart = reference is not None and not reference.in_pool
    return Pool(tuple(parts), without_own=apart and bool(np.isin(positions(annotated), chosen).any()))


def _held_out_twin(
    archive: Archive, records: Sequence[ImageRecord], splits: Sequence[str]
) -> tuple[ImageRecord, ImageRecord] | None:
    """One of the records and an image of these splits with the same pixels."""
    digests = archive.column("pixel_checksum")
    heads = np.ascontiguousarray(digests[:, :8]).view("<u8")[:, 0]
    held_out = positions(archive.select(splits=splits))
    own = positions(records)
    for index in own[np.isin(heads[own], heads[held_out])]:
        same = held_out[(digests[held_out] == digests[index]).all(axis=1)]
        if same.size:
            return archive.records[int(index)], archive.records[int(same[0])]
    return None


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

"""What a pretraining says before its first step: it trains as asked, but the reader should know, or hardly meant it."""

from __future__ import annotations

from collections.abc import Sequence

from pscl_hpc.pretraining.config import PretrainConfig

SCORED_SPLITS = ("val", "test")
"""Splits whose names begin so choose checkpoints or score results."""


def notices(config: PretrainConfig, splits: Sequence[str]) -> list[str]:
    """Sentences for the user; none where nothing is odd.

    Args:
        config: The run.
        splits: The split of each unlabelled image of the pool.
    """
    found = []
    scored = sorted({split for split in splits if split.startswith(SCORED_SPLITS)})
    if scored:
        found.append(
            f"warning: data.splits puts images of {', '.join(scored)} into the pool, so scores on them are not those "
            "of unseen images; leave these splits out, or say so beside the scores"
        )
    images, needed = len(splits), config.batch_size // config.accumulate
    if images < needed:
        found.append(
            f"the pool has {images} images for a batch of {needed}: an image is there more than once and is its own "
            f"negative; set batch_size={images} or less, or add images"
        )
    height, width = config.views.size
    stride = config.method.paired_stride(config.model.maps)
    if stride and (height != width or height % stride):
        side = max(1, round(height / stride)) * stride
        found.append(
            f"views.size is [{height}, {width}]: corresponding patches of the two views can be more than a patch apart "
            f"where views are not square with a side that is a multiple of {stride}; set views.size=[{side}, {side}]"
        )
    schedule = config.schedule
    if schedule.warmup_steps >= schedule.steps:
        found.append(
            f"schedule.warmup_steps ({schedule.warmup_steps}) is no less than schedule.steps ({schedule.steps}): the "
            "learning rate never reaches optimiser.lr; set fewer"
        )
    return found

"""What a pretraining says of its pool before the first step: nothing is wrong, but the reader should know."""

from __future__ import annotations

from pscl_hpc.pretraining.data import PretrainData

SCORED_SPLITS = ("val", "test")
"""Splits whose names begin so choose checkpoints or score results."""


def notices(data: PretrainData) -> list[str]:
    """Sentences, one for each thing; usually none."""
    found = []
    splits = {record.split for record in data.records}
    scored = sorted(split for split in splits if split.startswith(SCORED_SPLITS))
    if scored:
        found.append(
            f"warning: data.splits puts images of {', '.join(scored)} into the pool, so scores on them are not those "
            "of unseen images; leave these splits out, or say so beside the scores"
        )
    images, needed = len(data.records), data.per_pass
    if images < needed:
        found.append(
            f"the pool has {images} images for a batch of {needed}: an image is there more than once and is its "
            f"own negative; set batch_size={images} or less, or add images"
        )
    return found

"""What a pretraining says of its configuration before it begins: it trains as asked, but hardly as meant."""

from __future__ import annotations

from pscl_hpc.config import PretrainConfig


def advice(config: PretrainConfig, images: int) -> list[str]:
    """Sentences for the user; none where nothing is odd.

    Args:
        config: The run.
        images: Unlabelled images of the pool.
    """
    found = []
    needed = config.batch_size // config.accumulate
    if images < needed:
        found.append(
            f"the pool has {images} images for a batch of {needed}: an image is there more than once and is its own "
            f"negative; set batch_size={images} or less, or add images"
        )
    height, width = config.views.size
    stride = config.method.paired_stride(scales=len(config.model.widths) - 1)
    if stride and (height != width or height % stride):
        side = max(1, round(height / stride)) * stride
        found.append(
            f"views.size is [{height}, {width}]: corresponding cells of the two views can be more than a cell apart "
            f"where views are not square with a side that is a multiple of {stride}; set views.size=[{side}, {side}]"
        )
    schedule = config.schedule
    if schedule.warmup_steps >= schedule.steps:
        found.append(
            f"schedule.warmup_steps ({schedule.warmup_steps}) is no less than schedule.steps ({schedule.steps}): the "
            "learning rate never reaches optimiser.lr; set fewer"
        )
    return found

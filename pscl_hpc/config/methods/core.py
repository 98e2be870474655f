"""Contrastive and restorative learning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pscl_hpc.config.common import Count, Fraction, NonNegative, Positive, Strict
from pscl_hpc.config.methods.base import MethodBase


class CorruptionConfig(Strict):
    """What is done to an image that is to be restored. Every image has its own draw of everything."""

    block: tuple[Count, Count] = (24, 64)
    """Smallest and largest side, in pixels, of the square blocks that an image is divided into. Blocks should be
    larger than the particles, or what they hide can be read off their rim."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Probability of each block to be corrupted."""
    blank: NonNegative = 0.6
    """Relative frequency of blocks that are filled with the image's mean level."""
    shuffle: NonNegative = 0.2
    """Relative frequency of blocks whose pixels change places within small windows."""
    noise: NonNegative = 0.2
    """Relative frequency of blocks with added white noise."""
    shuffle_window: Annotated[int, Field(ge=2)] = 8
    """Side of the windows of ``shuffle``, in pixels."""
    noise_std: Positive = 0.25
    """Standard deviation of ``noise``, in grey levels of 0..1."""
    cutout: Fraction = 0.5
    """Probability that one rectangle is filled with the mean level besides."""
    cutout_side: tuple[Fraction, Fraction] = (0.25, 0.5)
    """Smallest and largest side of that rectangle, as a share of the image's side."""

    @model_validator(mode="after")
    def _consistent(self) -> CorruptionConfig:
        for key, (low, high) in (("block", self.block), ("cutout_side", self.cutout_side)):
            if low > high:
                raise ValueError(f"{key} is [{low}, {high}]: the smallest comes first")
        if self.blank + self.shuffle + self.noise == 0:
            raise ValueError("blank, shuffle and noise are all 0: blocks would stay as they are")
        return self


class CoreConfig(MethodBase):
    """CoRe: contrast of whole images and restoration of corrupted ones (IEEE TIM 2023, doi 10.1109/TIM.2023.3291776).

    Only the abstract is public. That both are combined, and that the corpus should resemble the target (``data``), is
    from there; everything else is this project's choice.
    """

    name: Literal["core"] = "core"
    corruption: CorruptionConfig = CorruptionConfig()
    """What the first view has to be restored from."""
    restoration: Fraction = 0.5
    """Share of the restoration; the contrast has the rest. 0: contrast alone; 1: restoration alone."""
    balance: Literal["gradient", "loss"] = "gradient"
    """What is shared. gradient: the norms that both losses' gradients have at the bottleneck, through weights that
    follow the measured norms; loss: the weights themselves."""
    temperature: Positive = 0.5
    """Temperature of NT-Xent."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the head, at most the width of the bottleneck."""

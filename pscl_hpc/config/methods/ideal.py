"""Dense contrast on the encoder's grid."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pscl_hpc.config.common import Count, NonNegative, Positive
from pscl_hpc.config.methods.base import MethodBase
from pscl_hpc.config.methods.momentum import MomentumConfig


class IdealConfig(MethodBase):
    """IDEAL: dense projections of the encoder, positives by correspondence (ICASSP 2023, arXiv 2210.15075)."""

    name: Literal["ideal"] = "ideal"
    correspondence: Literal["geometric", "feature"] = "geometric"
    """Which patch of view k is a patch's positive. geometric: the one that shows the same material; feature: the one
    whose encoder features are most alike."""
    patches_per_image: Annotated[int, Field(ge=0)] = 256
    """Patches of each image that are contrasted, drawn at random in each step; 0 takes all. All pairs of patches of
    different images are compared, so the work grows with the square."""
    momentum: MomentumConfig = MomentumConfig(start=0.99)
    """The branch of view k is the momentum encoder that has no gradient."""
    temperature: Positive = 0.2
    """Temperature of the contrast."""
    global_weight: NonNegative = 0.0
    """Weight of an image-level NT-Xent, which is added to the dense loss; 0 as drawn in the paper."""
    projection: Count = 128
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the heads, at most the width of the bottleneck."""

    def paired_stride(self, *, scales: int) -> int:
        """That of the bottleneck, where patches are paired by geometry."""
        return int(2**scales) if self.correspondence == "geometric" else 0

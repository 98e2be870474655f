"""Methods that contrast whole images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pscl_hpc.config.common import Count, Positive
from pscl_hpc.config.methods.base import MethodBase
from pscl_hpc.config.methods.momentum import MomentumConfig


class SimclrConfig(MethodBase):
    """SimCLR on the pooled bottleneck: the image loss of PSCL alone (Chen et al. 2020)."""

    name: Literal["simclr"] = "simclr"
    temperature: Positive = 0.5
    """Temperature of NT-Xent."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the head, at most the width of the bottleneck."""


class MocoConfig(MethodBase):
    """MoCo v2 on the pooled bottleneck (He et al. 2020, Chen et al. 2020)."""

    name: Literal["moco"] = "moco"
    temperature: Positive = 0.2
    """Temperature of InfoNCE."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the head, at most the width of the bottleneck."""
    momentum: MomentumConfig = MomentumConfig()
    """How the key encoder follows. The paper's 0.999 is for runs of a hundred thousand steps and more."""
    queue_steps: Count = 16
    """The queue holds the images of so many steps. An archive smaller than the queue stands in it several times over,
    and every image is then its own negative."""
    smallest_batch: ClassVar[int] = 1


class ByolConfig(MethodBase):
    """BYOL on the pooled bottleneck (Grill et al. 2020)."""

    name: Literal["byol"] = "byol"
    projection: Count = 128
    """Width of projections and predictions; 256 in the paper, for a trunk eight times as wide."""
    hidden: Count = 512
    """Hidden width of projector and predictor; 4096 in the paper."""
    momentum: MomentumConfig = MomentumConfig(schedule="cosine")
    """How the target network follows."""
    smallest_per_rank: ClassVar[int] = 2

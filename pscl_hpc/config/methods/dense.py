"""Methods that contrast the patches of a map without annotation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pscl_hpc.config.common import Count, Fraction, Positive
from pscl_hpc.config.methods.base import MethodBase
from pscl_hpc.config.methods.momentum import MomentumConfig


class DenseClConfig(MethodBase):
    """DenseCL on the bottleneck (Wang et al., CVPR 2021)."""

    name: Literal["densecl"] = "densecl"
    temperature: Positive = 0.2
    """Temperature of both losses."""
    dense_weight: Fraction = 0.5
    """Weight of the patch loss; the image loss has the rest."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of both heads, at most the width of the bottleneck."""
    momentum: MomentumConfig = MomentumConfig()
    """How the key encoder follows; 0.999 in the paper."""
    queue_steps: Count = 16
    """Each queue holds one key for every image of so many steps."""
    smallest_batch: ClassVar[int] = 1

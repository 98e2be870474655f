"""Methods that contrast whole images."""

from __future__ import annotations

from typing import Literal

from pscl_hpc.config.common import Count, Positive
from pscl_hpc.config.methods.base import MethodBase


class SimclrConfig(MethodBase):
    """SimCLR on the pooled bottleneck: the image loss of PSCL alone (Chen et al. 2020)."""

    name: Literal["simclr"] = "simclr"
    temperature: Positive = 0.5
    """Temperature of NT-Xent."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the head, at most the width of the bottleneck."""

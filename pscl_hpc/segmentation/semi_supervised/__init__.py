"""Fine-tuning that also trains on unlabelled images: one module per way, which registers its settings and objective."""

from pscl_hpc.segmentation.semi_supervised.base import (
    SEMI_SUPERVISED,
    AnySemiSupervised,
    SemiSupervisedConfig,
)

__all__ = ["SEMI_SUPERVISED", "AnySemiSupervised", "SemiSupervisedConfig"]

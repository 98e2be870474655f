"""What all ways of semi-supervised fine-tuning share: which unlabelled images, how many, and how much they weigh."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import SerializeAsAny, WrapValidator

from pscl_hpc.config import Count, NamedConfig, NonNegative, Registry


class SemiSupervisedConfig(NamedConfig):
    """Base of the ``semi_supervised`` section."""

    needs_average: ClassVar[bool] = False
    """Whether the objective uses the moving average of the weights."""
    datasets: tuple[str, ...] | None = None
    """Collections of the unlabelled images; that of the references when absent."""
    splits: tuple[str, ...] | None = None
    """Their splits; ``data.splits`` when absent. Validation and test splits are refused."""
    batch_size: Count = 4
    """Unlabelled windows per step, in addition to the annotated ones."""
    weight: NonNegative = 1.0
    """Weight of the loss on unlabelled pixels after its rise."""


SEMI_SUPERVISED: Registry[SemiSupervisedConfig, Any] = Registry(
    "pscl_hpc.segmentation.semi_supervised", default="ideal"
)

AnySemiSupervised = Annotated[SerializeAsAny[SemiSupervisedConfig], WrapValidator(SEMI_SUPERVISED.choose)]
"""Type of a configuration's ``semi_supervised`` section."""

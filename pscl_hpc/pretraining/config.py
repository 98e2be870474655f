"""The configuration of pretraining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pscl_hpc.config import (
    CheckpointConfig,
    Count,
    LogConfig,
    NonNegative,
    RuntimeConfig,
    TrainingConfig,
    ViewConfig,
)
from pscl_hpc.methods import METHODS, AnyMethod, ReferencedMethodConfig
from pscl_hpc.models import TRUNKS, AnyTrunk


class PretrainRuntimeConfig(RuntimeConfig):
    """Where and how fast the run is computed; the meaning of the result does not change."""

    kernels: Literal["auto", "reference", "chunked", "triton"] = "auto"
    """Backend of the contrastive losses; patches are matched by the best one that the device has."""


class PretrainCheckpointConfig(CheckpointConfig):
    """When the state is saved, and how much is kept."""

    keep_best: bool = True
    """Also keep the checkpoint with the lowest smoothed loss among those of ``every_steps``."""


class PretrainLogConfig(LogConfig):
    """What is logged during training."""

    similarity: bool = True
    """Log positive and hardest-negative similarity of each scale."""
    purity: bool = True
    """Log the share of sampled patches whose mask has the template's class, where masks are known."""
    probe_every: Annotated[int, Field(ge=0)] = 100
    """Measure the features every so many steps, and after the first and the last: their rank, and, with annotated
    training images, how well the nearest pixels tell the class. It does not change the training; 0 turns it off."""

    def keeps(self, term: str) -> bool:
        """Whether a term, such as ``scale0/purity``, is logged."""
        kind = term.rpartition("/")[2]
        chosen = {"positive": self.similarity, "negative": self.similarity, "purity": self.purity}
        return chosen.get(kind, True)


class PretrainConfig(TrainingConfig):
    """Pretraining of a trunk on unlabelled images."""

    kind: Literal["pretrain"] = "pretrain"
    pretrained: str = ""
    """Another run's folder or weights file, whose trunk is trained further; ``model`` must describe that trunk. Empty: the
    initial weights of ``model``."""
    model: AnyTrunk = Field(default_factory=TRUNKS.default_config)
    views: ViewConfig = ViewConfig()
    method: AnyMethod = Field(default_factory=METHODS.default_config)
    batch_size: Count = 8
    """Unlabelled images per step, over all ranks; references come on top."""
    encoder_lr_scale: NonNegative = 1.0
    """Learning rate of the encoder as a share of ``optimiser.lr``. Less than 1 keeps more of initial weights from
    ImageNet; 0 keeps them except for batch statistics."""
    accumulate: Count | Literal["exact"] = 1
    """A number: forward passes per step, each on an equal part of the batch with its own negatives. exact: the batch is
    computed in parts of ``part_size`` images, but its loss is that of the whole batch; the trunk must not normalise by
    batch statistics."""
    part_size: Count = 8
    """Unlabelled images of a part with ``accumulate=exact``: what the memory of one device holds. Each part also has an
    equal number of the references."""
    runtime: PretrainRuntimeConfig = PretrainRuntimeConfig()
    checkpoint: PretrainCheckpointConfig = PretrainCheckpointConfig()
    log: PretrainLogConfig = PretrainLogConfig()

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.accumulate == "exact":
            self._check_parts()
        elif self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})"
            )
        self.method.check(self.model.maps)
        if self.images_per_pass < self.method.smallest_batch:
            raise ValueError(
                f"batch_size / accumulate must be at least {self.method.smallest_batch} for {self.method.name}: "
                "a single image has no negatives"
            )
        references = self.references_per_pass if self.referenced and self.referenced.reference.ids else 0
        self.model.check_window("views.size", self.views.size, self.images_per_pass + references)
        return self

    def _check_parts(self) -> None:
        if self.batch_size % self.part_size:
            raise ValueError(
                f"with accumulate=exact batch_size ({self.batch_size}) must be a multiple of part_size "
                f"({self.part_size})"
            )
        parts = self.batch_size // self.part_size
        if self.referenced and self.referenced.reference.per_batch % parts:
            raise ValueError(
                f"with accumulate=exact the batch has {parts} parts (batch_size / part_size), each with an equal number "
                f"of references; set method.reference.per_batch={-(-self.referenced.reference.per_batch // parts) * parts}"
            )

    @property
    def passes(self) -> int:
        """Losses per step, each of an equal part of the batch."""
        return 1 if self.accumulate == "exact" else self.accumulate

    @property
    def parts(self) -> int:
        """Parts, over all ranks, in which the images of one loss are computed; 1 for each rank unless ``accumulate`` is
        exact."""
        return self.batch_size // self.part_size if self.accumulate == "exact" else 1

    @property
    def referenced(self) -> ReferencedMethodConfig | None:
        """The method's settings where it takes class templates from annotated references."""
        return self.method if isinstance(self.method, ReferencedMethodConfig) else None

    @property
    def images_per_pass(self) -> int:
        """Unlabelled images of one loss, over all ranks."""
        return self.batch_size // self.passes

    @property
    def references_per_pass(self) -> int:
        """References of one loss, over all ranks."""
        return self.referenced.reference.per_batch if self.referenced else 0

    @property
    def images_per_step(self) -> int:
        """Images of one optimiser step of all ranks, references included."""
        return self.batch_size + self.passes * self.references_per_pass

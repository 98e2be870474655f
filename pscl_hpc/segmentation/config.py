"""The configuration of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field, field_validator, model_validator

from pscl_hpc.config import (
    Count,
    JitterConfig,
    NonNegative,
    OptimiserConfig,
    Positive,
    ScheduleConfig,
    Size,
    Strict,
    TrainingConfig,
)
from pscl_hpc.models import AnyTrunk, TrunkConfig
from pscl_hpc.segmentation.semi_supervised import AnySemiSupervised


class FinetuneLossConfig(Strict):
    """Cross entropy plus Dice."""

    ce_weight: NonNegative = 0.5
    dice_weight: NonNegative = 0.5
    class_weights: Literal["uniform", "balanced"] | tuple[NonNegative, ...] = "balanced"
    """Weights of the cross entropy: one per class, or balanced: by the inverse root of each class's share of the
    annotated pixels, at most 10."""

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneLossConfig:
        if self.ce_weight + self.dice_weight == 0:
            raise ValueError("ce_weight and dice_weight are both 0: nothing would be learnt")
        weights = self.class_weights
        if not isinstance(weights, str) and not any(weights) and not self.dice_weight:
            raise ValueError("class_weights are all 0 and so is dice_weight: nothing would be learnt")
        return self


Tta = Literal["none", "rotations", "scales"]


class InferenceConfig(Strict):
    """How images are segmented after the training, unless a command says otherwise."""

    tta: Tta = "none"
    """Test-time augmentation: class probabilities are averaged over the eight rotations and reflections of a window, or
    over these at magnifications of 0.8, 1 and 1.25, in 8 or about 26 times the time of one pass."""
    adapt: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Weight of each image's own statistics in batch normalisation, where the network has any; for images whose exposure or
    contrast differs."""
    correct_shading: bool = False
    """Subtract a smooth surface from each image; for images of uneven illumination, not for layers or halves."""
    unweighted: bool = False
    """Divide the probability of each class by its weight in the cross entropy of the training, which makes rare classes
    too probable; for phase fractions of images like the annotated ones."""


class InferenceOptions(TypedDict, total=False):
    """What a command says of inference; None: as configured in the run."""

    tta: Tta | None
    adapt: float | None
    correct_shading: bool | None
    unweighted: bool | None


class FinetuneConfig(TrainingConfig):
    """Fine-tuning of trunk and segmentation head on the annotated images."""

    kind: Literal["finetune"] = "finetune"
    references: tuple[str, ...]
    """Annotated images to train on, ``dataset/stem``, all of one collection."""
    square: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of the one square of each reference whose annotation is used, as if the rest was never annotated;
    0: all of it. It is the square that shows the most classes."""
    pretrained: str = ""
    """A pretraining run folder or its trunk.safetensors; empty starts from random weights."""
    model: AnyTrunk | None = None
    """The trunk; absent: that of ``pretrained``, or the default one. Where both are given they must agree."""
    crop: Size = (160, 160)
    """Random windows trained on, in pixels after ``resize``."""
    batch_size: Count = 4
    """Windows per step."""
    resize: Positive | Literal["auto"] = 1.0
    """Images are resized by this factor for the network, and class probabilities back. auto: images of more than 768
    pixels a side are reduced to about that, but not so far that the mean intercept of the finest annotated class becomes
    less than 4 pixels."""
    oversample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the annotated windows that contain a pixel of a class drawn with equal probability for each, so that rare
    classes are seen more often (as in nnU-Net, Isensee et al. 2021); the others are anywhere."""
    jitter: JitterConfig = JitterConfig(brightness=0.08, contrast=0.08, saturation=0.08, hue=0.02)
    """Random intensity changes of the windows."""
    flip: bool = True
    """Windows are flipped at random."""
    rotate: bool = True
    """Windows are rotated by a random multiple of 90 degrees."""
    any_angle: bool = False
    """Windows are rotated by a random angle of any size, which resamples them."""
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    """Smallest and largest magnification of windows, drawn log-uniformly; a reduced image is blurred first."""
    loss: FinetuneLossConfig = FinetuneLossConfig()
    semi_supervised: AnySemiSupervised | None = None
    """Also train on unlabelled images; absent: on the annotated ones alone."""
    schedule: ScheduleConfig = ScheduleConfig(steps=300)
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-3)
    encoder_lr_scale: NonNegative = 0.1
    """Learning rate of a pretrained encoder as a share of ``optimiser.lr``; an encoder from scratch has all of it."""
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay of the moving average of the weights, which is validated and exported; 0: the weights themselves. In the
    first steps the decay is smaller, (step + 1) / (step + 10)."""
    inference: InferenceConfig = InferenceConfig()
    """Validation during the training uses one plain pass."""
    validation_split: str = "val"
    """The split that chooses the checkpoint; the test split never does."""
    validate_every: Count = 50
    """Steps between validations; the best mean Dice is kept. The last step always validates."""

    @model_validator(mode="before")
    @classmethod
    def _default_trunk(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and not tree.get("pretrained") and tree.get("model") is None:
            return {**tree, "model": {}}
        return tree

    @field_validator("references")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("references names no annotated image; fine-tuning needs at least one")
        # Duplicates are dropped: the report would otherwise count two annotated images.
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _fits(self) -> FinetuneConfig:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}: the smallest magnification comes first")
        if self.semi_supervised is not None and self.semi_supervised.needs_average and not self.average:
            raise ValueError(
                f"semi_supervised.name is {self.semi_supervised.name}, whose teacher is the average of the weights; set "
                "average=0.99"
            )
        if self.model is not None:
            self.check_trunk(self.model)
        return self

    @property
    def trunk(self) -> TrunkConfig:
        """The trunk of a training from scratch."""
        assert self.model is not None, "a pretrained trunk has its own description"
        return self.model

    def check_trunk(self, found: TrunkConfig) -> None:
        """Raise ValueError where a trunk does not fit the windows, or is not the one that ``model`` asks for."""
        if self.model is not None:
            self.model.check_same(found)
        mixed = self.semi_supervised.batch_size if self.semi_supervised else 0
        found.check_window("crop", self.crop, self.batch_size + mixed)

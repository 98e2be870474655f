"""The configuration of a pixel classifier."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pscl_hpc.classifiers import FEATURES, HEADS, AnyFeatures, AnyHead
from pscl_hpc.config import Count, Fraction, Positive, RunConfig, Strict, check_folder


class PixelSampling(Strict):
    """The annotated pixels that a classifier learns from."""

    per_class: Count = 5000
    """Pixels of each class, at most, drawn from all references together."""
    balance: Fraction = 0.5
    """How much rare classes count: with the share of a class among the annotated pixels to the power of 1 - balance. 0:
    as much as they are frequent; 1: all classes the same."""


class ClassifierConfig(RunConfig):
    """A classifier of single pixels, trained on the annotated images alone."""

    kind: Literal["classifier"] = "classifier"
    references: tuple[str, ...]
    """Annotated images to train on, ``dataset/stem``, all of one collection."""
    square: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of the one square of each reference whose annotation is used, as if the rest was never annotated;
    0: all of it. It is the square that shows the most classes."""
    pretrained: str = ""
    """A pretraining run folder or its trunk.safetensors, whose maps are the features; needs features.name=trunk."""
    resize: Positive | Literal["auto"] = 1.0
    """Images are resized by this factor for the features. auto: as for networks, see ``pscl-hpc config finetune``."""
    features: AnyFeatures = Field(default_factory=FEATURES.default_config)
    """What a pixel is described by."""
    head: AnyHead = Field(default_factory=HEADS.default_config)
    """What decides the class."""
    pixels: PixelSampling = PixelSampling()
    cache: str = ""
    """Folder in which the features of archive images are kept, by content, for other heads and runs; empty: not kept.
    About 25 MB for a megapixel and 10 features."""

    @field_validator("references")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("references names no annotated image; a classifier needs at least one")
        return tuple(dict.fromkeys(value))

    @field_validator("cache")
    @classmethod
    def _folder(cls, value: str) -> str:
        return check_folder("cache", value)

    @model_validator(mode="after")
    def _fits(self) -> ClassifierConfig:
        self.features.check_trunk(self.pretrained)
        return self

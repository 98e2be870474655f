"""``evaluation.json`` of a fine-tuning run, checked."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pscl_hpc.files import read_checked
from pscl_hpc.segmentation.classes import ClassList


def number(value: Any) -> float | None:
    """A finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


Score = Annotated[float | None, BeforeValidator(number)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ImageScore(_Part):
    """The score of one image."""

    id: str
    mean_dice: Score


class SplitScores(_Part):
    """Scores of one split, pooled over its images."""

    images: int
    dice: dict[str, Score]
    """Per scored class; None where the class is in neither mask nor prediction."""
    mean_dice: Score
    mean_iou: Score
    pixel_accuracy: Score
    images_scored: tuple[ImageScore, ...] = Field(alias="per_image")

    @cached_property
    def per_image(self) -> dict[str, float | None]:
        """Mean Dice by image id."""
        return {image.id: image.mean_dice for image in self.images_scored}


class Evaluation(_Part):
    """The scores of a run."""

    collection: str
    class_names: tuple[str, ...] = Field(alias="classes")
    background: int
    ignore_classes: tuple[int, ...]
    references: tuple[str, ...]
    """Ids of the annotated images that the run was trained on."""
    pretrained: str
    """Where the trunk came from; empty: random weights."""
    split: str
    """The split that represents the run."""
    splits: dict[str, SplitScores]
    archive: str
    """Fingerprint of the archive that was scored."""
    tta: Literal["none", "rotations", "scales"]
    """Test-time augmentation."""
    adapt: float
    """Share of each image's own statistics in batch normalisation."""

    @cached_property
    def classes(self) -> ClassList:
        """The classes that were scored."""
        return ClassList(self.class_names, self.background, self.ignore_classes)

    @property
    def inference(self) -> str:
        """How the predictions were made; empty: one plain pass."""
        ways = ["test-time augmentation"] * (self.tta != "none") + ["adaptation to each image"] * bool(
            self.adapt
        )
        return " and ".join(ways)

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if self.split not in self.splits:
            raise ValueError(f"there are no scores of the split '{self.split}'")
        assert self.classes
        return self


def read_evaluation(path: Path) -> Evaluation:
    """Read ``evaluation.json``.

    Raises:
        UserError: it does not exist or is damaged.
    """
    advice = f"run 'pscl-hpc evaluate {path.parent}' again"
    return read_checked(path, Evaluation, advice)

"""``evaluation.json`` of a fine-tuning run, checked."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
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
    model_config = ConfigDict(frozen=True)


class ImageScore(_Part):
    """The score of one image."""

    id: str
    mean_dice: Score
    confusion: tuple[tuple[int, ...], ...] = ()
    """Pixels by true class (row) and predicted class; empty in evaluations of earlier versions."""


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
    correct_shading: bool = False
    """Whether uneven illumination was corrected."""
    unweighted: bool = False
    """Whether the class weights of the training were taken out."""

    @cached_property
    def classes(self) -> ClassList:
        """The classes that were scored."""
        return ClassList(self.class_names, self.background, self.ignore_classes)

    @property
    def inference(self) -> str:
        """How the predictions were made; empty: one plain pass."""
        ways = {
            "test-time augmentation": self.tta != "none",
            "adaptation to each image": self.adapt,
            "shading correction": self.correct_shading,
            "class weights taken out": self.unweighted,
        }
        return " and ".join(name for name, used in ways.items() if used)

    def fraction_errors(self, split: str) -> dict[str, float] | None:
        """Error of the phase fraction of each foreground class, a share of the area.

        It is the difference between the predicted fraction of an image and that in its mask, among annotated pixels,
        without its sign, as mean over the images of a split. None without confusion matrices.
        """
        counts = [np.array(image.confusion) for image in self.splits[split].images_scored]
        if not counts or any(one.size == 0 for one in counts):
            return None
        errors = [abs(one.sum(axis=0) - one.sum(axis=1)) / one.sum() for one in counts if one.sum()]
        if not errors:
            return None
        mean = np.mean(errors, axis=0)
        return {self.class_names[index]: float(mean[index]) for index in self.classes.foreground}

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if self.split not in self.splits:
            raise ValueError(f"there are no scores of the split '{self.split}'")
        count = self.classes.count
        for scores in self.splits.values():
            for image in scores.images_scored:
                if image.confusion and [len(row) for row in image.confusion] != [count] * count:
                    raise ValueError(f"the confusion matrix of {image.id} is not {count} x {count}")
        return self


def read_evaluation(path: Path) -> Evaluation:
    """Read ``evaluation.json``.

    Raises:
        UserError: it does not exist or is damaged.
    """
    advice = f"run 'pscl-hpc evaluate {path.parent}' again"
    return read_checked(path, Evaluation, advice)

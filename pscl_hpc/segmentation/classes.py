"""The class list of a segmentation task: the classes that are trained, predicted and scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive import IGNORE_INDEX, Collection
from pscl_hpc.models import ModelCard


@dataclass(frozen=True)
class ClassList:
    """Class names in index order, the background and the ignored classes.

    An ignored class is never trained, predicted or scored; its pixels are treated as unannotated.

    Raises:
        ValueError: fewer than two classes are not ignored, or there are more than 255.
    """

    names: tuple[str, ...]
    background: int = 0
    ignored: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) > IGNORE_INDEX:
            raise ValueError(f"segmentation takes at most {IGNORE_INDEX} classes, got {len(self.names)}")
        if len(self.kept) < 2:
            raise ValueError(
                f"segmentation needs at least two classes that are not ignored, got {len(self.kept)}"
            )

    @classmethod
    def of(cls, source: Collection | ModelCard) -> ClassList:
        """The class list of a collection, or of a trained model."""
        return cls(tuple(source.classes), source.background, tuple(source.ignore_classes))

    @property
    def count(self) -> int:
        """Number of classes, including ignored ones: the channels of the classifier."""
        return len(self.names)

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices that are not ignored, ascending."""
        return tuple(index for index in range(len(self.names)) if index not in self.ignored)

    @property
    def foreground(self) -> tuple[int, ...]:
        """Indices of the scored classes: neither ignored nor background."""
        return tuple(index for index in self.kept if index != self.background)

    def without_ignored(self, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The mask (h, w) with ignored classes replaced by 255 (not annotated)."""
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[list(self.kept)] = self.kept
        return table[mask]

"""The interface of a head: features of pixels to class probabilities.

Shape legend: N pixels, F features, K classes that the annotated pixels show.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import SerializeAsAny, WrapValidator
from torch import Tensor

from pscl_hpc.config import NamedConfig, Registry


class Samples(NamedTuple):
    """Annotated pixels to learn from."""

    features: Tensor
    """(N, F) float32, each feature with mean 0 and standard deviation 1."""
    labels: Tensor
    """(N,) int64 in 0..K-1."""
    weights: Tensor
    """(N,) float32, mean 1: how much a pixel counts."""
    classes: int
    """K, at least 2."""


class HeadConfig(NamedConfig):
    """Base of the ``head`` section."""


class Head(ABC):
    """A classifier of feature vectors.

    Args:
        config: The settings.
        features: F.
        classes: K.
    """

    config: HeadConfig

    @abstractmethod
    def __init__(self, config: HeadConfig, features: int, classes: int) -> None: ...

    @abstractmethod
    def fit(self, samples: Samples, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Learn from pixels; yields a step and values for the log. The same samples and seed give the same head."""

    @abstractmethod
    def probabilities(self, features: Tensor) -> Tensor:
        """(N, F) to (N, K) float32."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What was learnt, by name."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state`.

        Raises:
            KeyError, RuntimeError, ValueError: it does not fit, or holds something that may not be loaded.
            UserError: a package is missing.
        """


HEADS: Registry[HeadConfig, Head] = Registry("pscl_hpc.classifiers.heads", default="mlp")

AnyHead = Annotated[SerializeAsAny[HeadConfig], WrapValidator(HEADS.choose)]
"""Type of a configuration's ``head`` section."""

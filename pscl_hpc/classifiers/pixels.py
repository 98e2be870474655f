"""A pixel classifier: features, their standardisation, head and class names in one safetensors file.

Nothing is unpickled: see :mod:`pscl_hpc.classifiers.heads.trees` for the trees of scikit-learn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pscl_hpc.classifiers.features.base import FEATURES, FeatureSet
from pscl_hpc.classifiers.heads.base import HEADS, Head, HeadConfig, Samples
from pscl_hpc.errors import UserError
from pscl_hpc.models.weights import write_tensors

CLASSIFIER_FILE = "classifier.safetensors"
_HEADER = "pscl_hpc_classifier"
_HEAD, _FEATURES = "head.", "features."
_LEAST = 1e-6
"""Least standard deviation of a feature: a constant one is not amplified."""


@dataclass(frozen=True)
class ClassifierCard:
    """Contents of a classifier's file besides its weights."""

    classes: tuple[str, ...]
    """Class names in index order."""
    background: int
    ignore_classes: tuple[int, ...]
    shown: tuple[int, ...]
    """Indices of the classes that the annotated images show: the columns of the head."""
    resize: float = 1.0
    """Factor by which images are resized for the features."""


class PixelClassifier:
    """Features of a pixel to probabilities of the classes in :attr:`ClassifierCard.shown`."""

    def __init__(self, features: FeatureSet, config: HeadConfig, card: ClassifierCard) -> None:
        self.features = features
        self.card = card
        self.head: Head = HEADS.implementation(config)(config, features.count, len(card.shown))
        self._mean = torch.zeros(features.count)
        self._deviation = torch.ones(features.count)

    def fit(self, samples: Samples, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Learn from pixels, whose features are as they are; yields steps and values for the log."""
        self._mean = samples.features.mean(dim=0)
        self._deviation = samples.features.std(dim=0, correction=0).clamp(min=_LEAST)
        yield from self.head.fit(samples._replace(features=self._scaled(samples.features)), seed)

    def probabilities(self, features: Tensor) -> Tensor:
        """(N, F) to (N, K)."""
        return self.head.probabilities(self._scaled(features))

    def save(self, path: Path) -> None:
        """Write the file; JobError where that fails."""
        header = {
            "features": self.features.config.model_dump(mode="json"),
            "head": self.head.config.model_dump(mode="json"),
            **asdict(self.card),
        }
        tensors = {"mean": self._mean, "deviation": self._deviation}
        tensors |= {_HEAD + name: value for name, value in self.head.state().items()}
        tensors |= {_FEATURES + name: value for name, value in self.features.weights().items()}
        write_tensors(path, tensors, {_HEADER: json.dumps(header)})

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self._mean) / self._deviation

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._mean, self._deviation = tensors["mean"], tensors["deviation"]
        if self._mean.shape != self._deviation.shape or self._mean.shape != (self.features.count,):
            raise ValueError(f"it describes {self.features.count} features and scales {len(self._mean)}")
        self.features.load_weights(_part(tensors, _FEATURES))
        self.head.load_state(_part(tensors, _HEAD))


def load_classifier(folder: Path) -> PixelClassifier:
    """Load the classifier of a run folder.

    Raises:
        UserError: there is none, it is damaged or of another version, or a package that its head needs is missing.
    """
    path = folder / CLASSIFIER_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: contains no {CLASSIFIER_FILE}; wait until the run has finished, or name another run"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header: Any = json.loads((file.metadata() or {})[_HEADER])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a classifier ({error}); copy or write it again") from None
    try:
        features = FEATURES.config(header["features"]["name"]).model_validate(header["features"])
        head = HEADS.config(header["head"]["name"]).model_validate(header["head"])
        card = ClassifierCard(
            tuple(map(str, header["classes"])),
            int(header["background"]),
            tuple(map(int, header["ignore_classes"])),
            tuple(map(int, header["shown"])),
            float(header["resize"]),
        )
        classifier = PixelClassifier(FEATURES.implementation(features)(features, initial=False), head, card)
        classifier._load(tensors)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: does not fit this version of pscl-hpc ({str(error).splitlines()[0]}); train again"
        ) from None
    return classifier


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

"""The nearest annotated pixels vote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pscl_hpc.classifiers.heads.base import HEADS, Head, HeadConfig, Samples
from pscl_hpc.config import Count
from pscl_hpc.seeding import torch_generator

_BATCH = 1 << 12
"""Pixels whose distances are computed at once."""


class NeighboursConfig(HeadConfig):
    """k nearest neighbours by Euclidean distance of the standardised features."""

    name: Literal["knn"] = "knn"
    display_name: ClassVar[str] = "kNN"
    neighbours: Count = 15
    """Pixels that vote, each with its weight."""
    samples: Count = 5000
    """Annotated pixels that are kept; the time of a prediction is proportional to them."""


@HEADS.register(NeighboursConfig)
class Neighbours(Head):
    """The head of :class:`NeighboursConfig`."""

    config: NeighboursConfig

    def __init__(self, config: NeighboursConfig, features: int, classes: int) -> None:
        self.config = config
        self._features = torch.zeros(0, features)
        self._votes = torch.zeros(0, classes)
        """(M, K): the weight of a kept pixel in the column of its class."""

    def fit(self, samples: Samples, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
        count = len(samples.labels)
        order = torch.randperm(count, generator=torch_generator(seed, "neighbours"))
        kept = order[: self.config.samples].sort().values
        self._features = samples.features[kept].contiguous()
        self._votes = torch.zeros(len(kept), samples.classes)
        self._votes[torch.arange(len(kept)), samples.labels[kept]] = samples.weights[kept]
        yield 1, {"neighbours_kept": len(kept)}

    @torch.inference_mode()
    def probabilities(self, features: Tensor) -> Tensor:
        count = min(self.config.neighbours, len(self._features))
        found = []
        for part in torch.split(features, _BATCH):
            nearest = torch.cdist(part, self._features).topk(count, largest=False).indices
            votes = self._votes[nearest].sum(dim=1)
            found.append(votes / votes.sum(dim=1, keepdim=True))
        return torch.cat(found)

    def state(self) -> dict[str, Tensor]:
        return {"features": self._features, "votes": self._votes}

    def load_state(self, state: dict[str, Tensor]) -> None:
        features, votes = state["features"], state["votes"]
        expected = (self._features.shape[1], self._votes.shape[1])
        if (features.shape[1:], votes.shape[1:]) != (expected[:1], expected[1:]) or len(features) != len(
            votes
        ):
            raise ValueError(
                f"its neighbours have the shapes {tuple(features.shape)} and {tuple(votes.shape)}"
            )
        self._features, self._votes = features, votes

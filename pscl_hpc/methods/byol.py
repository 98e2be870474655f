"""BYOL (Grill et al., NeurIPS 2020, arXiv 2006.07733) on the pooled bottleneck, without negatives."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.config import Count
from pscl_hpc.methods.base import METHODS, Method, MethodConfig, MethodOutput, Setting, Views
from pscl_hpc.methods.common.momentum import (
    MomentumConfig,
    MomentumEncoder,
    at_least_float32,
    momentum_at,
)
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import Trunk
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import mean_over_ranks


class ByolConfig(MethodConfig):
    """BYOL on the pooled bottleneck: each view predicts the other, without negatives (Grill et al., NeurIPS 2020)."""

    name: Literal["byol"] = "byol"
    display_name: ClassVar[str] = "BYOL"
    projection: Count = 128
    """Width of projections and predictions. The paper has 256, with a trunk eight times as wide."""
    hidden: Count = 512
    """Hidden width of projector and predictor. The paper has 4096."""
    momentum: MomentumConfig = MomentumConfig(schedule="cosine")
    """Update of the target network."""
    smallest_per_rank: ClassVar[int] = 2


@METHODS.register(ByolConfig)
class Byol(Method):
    """Each view predicts the momentum projection of the other view. The decoder is not trained."""

    config: ByolConfig

    def __init__(self, trunk: Trunk, config: ByolConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        self.projector = _mlp(trunk.maps.bottleneck.channels, config.hidden, config.projection)
        self.predictor = _mlp(config.projection, config.hidden, config.projection)
        self.momentum_trunk = MomentumEncoder(trunk)
        self.momentum_projector = MomentumEncoder(self.projector)

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """Pooled bottlenecks of both views, of the trunk and of its momentum copy."""
        q = self.trunk.encode(views.query)[-1].mean(dim=(2, 3))
        target_k = draws.once("target k", lambda: self._target_features(views.key))
        k = self.trunk.encode(views.key)[-1].mean(dim=(2, 3))
        target_q = draws.once("target q", lambda: self._target_features(views.query))
        return Embedding({"q": q, "k": k, "target q": target_q, "target k": target_k})

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """Mean over images of ``2 - 2 cos`` from q to k plus that from k to q (equations 2 and 3).

        Projector and predictor normalise over the whole batch, so they belong to the loss.
        """
        found = embedding.images
        distances = _distance(self._predictions(found["q"]), self._targets(found["target k"])) + _distance(
            self._predictions(found["k"]), self._targets(found["target q"])
        )
        count = torch.tensor(float(len(distances)), device=distances.device)
        loss = mean_over_ranks(distances.sum(), count, self.process_group)
        return MethodOutput(loss, {"image/loss": loss.detach()})

    @torch.no_grad()
    def _target_features(self, images: Tensor) -> Tensor:
        return self.momentum_trunk.module.encode(images)[-1].mean(dim=(2, 3))

    def _predictions(self, features: Tensor) -> Tensor:
        predictions: Tensor = self.predictor(self.projector(features))
        return predictions

    def _targets(self, features: Tensor) -> Tensor:
        targets: Tensor = self.momentum_projector(features)
        return targets

    def after_step(self, progress: float) -> None:
        """See :class:`Method`."""
        momentum = momentum_at(self.config.momentum, progress)
        self.momentum_trunk.follow(self.trunk, momentum)
        self.momentum_projector.follow(self.projector, momentum)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, batch normalisation, ReLU, linear (section 3.3)."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def _distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """``2 - 2 cos`` of each row, (B,)."""
    return 2 - 2 * F.cosine_similarity(at_least_float32(predictions), at_least_float32(targets), dim=1)

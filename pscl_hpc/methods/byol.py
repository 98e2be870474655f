"""BYOL (Grill et al. 2020) on the pooled bottleneck: a momentum target is predicted, there are no negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.config import ByolConfig, PretrainConfig
from pscl_hpc.methods.base import Method, MethodOutput, Setting, Views
from pscl_hpc.methods.momentum import MomentumEncoder, momentum_at
from pscl_hpc.methods.precision import at_least_float32
from pscl_hpc.models import UNet
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import mean_over_ranks


class Byol(Method):
    """Each view predicts the other view's momentum projection.

    Args:
        trunk: The U-Net; its encoder is trained.
        config: Method settings.
    """

    def __init__(self, trunk: UNet, config: ByolConfig) -> None:
        super().__init__(trunk)
        self.config = config
        self.projector = _mlp(trunk.config.widths[-1], config.hidden, config.projection)
        self.predictor = _mlp(config.projection, config.hidden, config.projection)
        self.momentum_trunk = MomentumEncoder(trunk)
        self.momentum_projector = MomentumEncoder(self.projector)

    @classmethod
    def build(cls, trunk: UNet, config: PretrainConfig, setting: Setting) -> Byol:
        """See :class:`Method`."""
        assert isinstance(config.method, ByolConfig)
        return cls(trunk, config.method)

    def forward(self, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        """Mean over images of ``2 - 2 cos`` from q to k plus that from k to q (equations 2 and 3)."""
        distances = _distance(self._predictions(views.query), self._targets(views.key)) + _distance(
            self._predictions(views.key), self._targets(views.query)
        )
        count = torch.tensor(float(len(distances)), device=distances.device)
        loss = mean_over_ranks(distances.sum(), count, self.process_group)
        return MethodOutput(loss, {"image/loss": loss.detach()})

    def _predictions(self, images: Tensor) -> Tensor:
        predictions: Tensor = self.predictor(self.projector(self.trunk.encode(images)[-1].mean(dim=(2, 3))))
        return predictions

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        bottleneck = self.momentum_trunk.module.encode(images)[-1]
        targets: Tensor = self.momentum_projector(bottleneck.mean(dim=(2, 3)))
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

# mypy: disable-error-code="import-not-found"
"""NTXentLoss of pytorch-metric-learning."""

import torch
from torch import Tensor

from bench.gpu.peers.base import Loss, Peer
from bench.gpu.setting import Setting


def loss(setting: Setting, temperature: float) -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss

    module = NTXentLoss(temperature=temperature)

    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        found: Tensor = module(torch.cat([q, k]), torch.arange(q.shape[0], device=q.device).repeat(2))
        return found

    return call


PEERS = (
    Peer(
        "pytorch-metric-learning NTXentLoss",
        "pytorch-metric-learning",
        "loss",
        loss,
        differs="lists each positive against all negatives: memory grows with the cube of the rows",
        most_rows=16_384,
    ),
)

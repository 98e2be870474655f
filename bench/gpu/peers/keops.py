# mypy: disable-error-code="import-not-found, no-any-return"
"""KeOps: a logsumexp over lazy pairs, compiled for the formula."""

import torch
from torch import Tensor

from bench.gpu.peers.base import Loss, Peer, positives, unit_rows
from bench.gpu.setting import Setting

FAR = 1e4
"""Taken from the logit of a pair that is left out."""


def loss(setting: Setting, temperature: float) -> Loss:
    from pykeops.torch import LazyTensor

    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        z = unit_rows(q, k).float()
        rows = torch.arange(z.shape[0], device=z.device)
        group = (rows if groups is None else torch.cat([groups, groups])).float()
        x, y = LazyTensor(z[:, None, :].contiguous()), LazyTensor(z[None, :, :].contiguous())
        a, b = LazyTensor(group[:, None, None].contiguous()), LazyTensor(group[None, :, None].contiguous())
        same = (0.5 - (a - b).square()).step()
        logits = (x | y) / temperature - FAR * same
        log_sum = logits.logsumexp(dim=1).reshape(-1)
        positive = positives(z) / temperature
        if groups is not None:
            log_sum = torch.logaddexp(log_sum, positive)
        return (log_sum - positive).mean()

    return call


PEERS = (
    Peer(
        "KeOps",
        "pykeops",
        "loss",
        loss,
        differs="float32 without tensor cores; group numbers as float32",
        groups=True,
    ),
)

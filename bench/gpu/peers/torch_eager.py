"""Plain torch: the whole matrix of similarities, eager."""

import math

import torch
from torch import Tensor

from bench.gpu.peers.base import Loss, Peer, Queue, Top, unit_rows
from bench.gpu.setting import Setting


def loss(setting: Setting, temperature: float) -> Loss:
    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        n = q.shape[0]
        z = unit_rows(q, k)
        logits = (z @ z.T).float() / temperature
        positive = torch.cat([logits.diagonal(n), logits.diagonal(-n)])
        if groups is None:
            logits.fill_diagonal_(-math.inf)
            return (logits.logsumexp(1) - positive).mean()
        group = torch.cat([groups, groups])
        negatives = logits.masked_fill(group[:, None] == group[None, :], -math.inf).logsumexp(1)
        return (torch.logaddexp(positive, negatives) - positive).mean()

    return call


def queue(setting: Setting, temperature: float) -> Queue:
    def call(q: Tensor, k: Tensor, entries: Tensor) -> Tensor:
        z, key = unit_rows(q, k).chunk(2)
        positive = (z.float() * key.float()).sum(1) / temperature
        negatives = ((z @ entries.T).float() / temperature).logsumexp(1)
        return (torch.logaddexp(positive, negatives) - positive).mean()

    return call


def top1(setting: Setting, temperature: float) -> Top:
    def call(templates: Tensor, patches: Tensor) -> Tensor:
        return (templates @ patches.transpose(1, 2)).argmax(2)

    return call


PEERS = (
    Peer("torch, eager", "torch", "loss", loss, groups=True),
    Peer("torch, eager", "torch", "queue", queue),
    Peer(
        "torch, eager", "torch", "top1", top1, differs="no exclusion: the best patch of each template alone"
    ),
)

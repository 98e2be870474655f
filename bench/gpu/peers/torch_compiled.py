# mypy: disable-error-code="no-untyped-call"
"""torch.compile over chunks of rows, each computed again in the backward pass: memory of one chunk."""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.gpu.peers.base import Loss, Peer, Queue, unit_rows
from bench.gpu.setting import Setting

CHUNK = 4096
"""Rows of a chunk."""


def loss(setting: Setting, temperature: float) -> Loss:
    def of_chunk(rows: Tensor, z: Tensor, first: int, group: Tensor) -> Tensor:
        """Sum of the losses of rows [first, first + len(rows))."""
        row = torch.arange(first, first + rows.shape[0], device=z.device)
        partner = (row + z.shape[0] // 2) % z.shape[0]
        column = torch.arange(z.shape[0], device=z.device)
        logits = (rows @ z.T).float() / temperature
        excluded = (group[row][:, None] == group[None, :]) & (column[None, :] != partner[:, None])
        log_sum = logits.masked_fill(excluded, -math.inf).logsumexp(1)
        return (log_sum - logits.gather(1, partner[:, None]).squeeze(1)).sum()

    compiled = torch.compile(of_chunk)

    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        z = unit_rows(q, k)
        ids = torch.arange(q.shape[0], device=q.device) if groups is None else groups
        if groups is None:
            # Its own product alone is left out: every row its own group.
            group = torch.arange(z.shape[0], device=q.device)
        else:
            group = torch.cat([ids, ids])
        total = z.new_zeros((), dtype=torch.float32)
        for first in range(0, z.shape[0], CHUNK):
            rows = z[first : first + CHUNK]
            total = total + checkpoint(compiled, rows, z, first, group, use_reentrant=False)
        return total / z.shape[0]

    return call


def queue(setting: Setting, temperature: float) -> Queue:
    def of_chunk(rows: Tensor, keys: Tensor, entries: Tensor) -> Tensor:
        positive = (rows.float() * keys.float()).sum(1) / temperature
        negatives = ((rows @ entries.T).float() / temperature).logsumexp(1)
        return (torch.logaddexp(positive, negatives) - positive).sum()

    compiled = torch.compile(of_chunk)

    def call(q: Tensor, k: Tensor, entries: Tensor) -> Tensor:
        z, key = unit_rows(q, k).chunk(2)
        total = z.new_zeros((), dtype=torch.float32)
        for rows, keys in zip(z.split(CHUNK), key.split(CHUNK), strict=True):
            total = total + checkpoint(compiled, rows, keys, entries, use_reentrant=False)
        return total / z.shape[0]

    return call


PEERS = (
    Peer("torch.compile, chunks", "torch", "loss", loss, groups=True, most_rows=262_144),
    Peer("torch.compile, chunks", "torch", "queue", queue, most_rows=262_144),
)

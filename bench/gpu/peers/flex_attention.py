# mypy: disable-error-code="arg-type, no-any-return"
"""torch's FlexAttention: its logsumexp under a block mask, sorted by group so that whole blocks drop out."""

import warnings
from typing import Any

import torch
from torch import Tensor

from bench.gpu.peers.base import Loss, Peer, Queue, unit_rows
from bench.gpu.setting import Setting

VALUES = 16
"""Width of the values, which nobody needs: the least that the operator takes."""


def log_sums(setting: Setting) -> Any:
    """(queries (M, D), keys (K, D), block mask or None, scale) -> (M,) logsumexp."""
    from torch.nn.attention.flex_attention import flex_attention

    attention = flex_attention if setting.tiny else torch.compile(flex_attention, dynamic=False)

    def call(queries: Tensor, keys: Tensor, mask: Any, scale: float) -> Tensor:
        values = keys.new_zeros((1, 1, keys.shape[0], VALUES))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of the name of the argument, and of running uncompiled in a dry run
            _, found = attention(
                queries[None, None], keys[None, None], values, block_mask=mask, scale=scale, return_lse=True
            )
        log_sum: Tensor = found[0, 0]
        return log_sum

    return call


def loss(setting: Setting, temperature: float) -> Loss:
    from torch.nn.attention.flex_attention import create_block_mask

    log_sum = log_sums(setting)
    masks: dict[tuple[int, int], tuple[Any, Tensor, Tensor]] = {}

    def prepared(n: int, groups: Tensor | None, device: torch.device) -> tuple[Any, Tensor, Tensor]:
        """(mask, order of rows, sorted place of each sorted row's partner), once for the same groups."""
        key = (n, 0 if groups is None else groups.data_ptr())
        if key not in masks:
            rows = torch.arange(2 * n, device=device)
            group = rows if groups is None else torch.cat([groups, groups])
            order = group.argsort(stable=True)
            place = torch.empty_like(order).scatter_(0, order, rows)
            partner, group = place.roll(-n)[order], group[order]

            def kept(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return (group[i] != group[j]) | (partner[i] == j)

            mask = create_block_mask(kept, 1, 1, 2 * n, 2 * n, device=str(device), _compile=not setting.tiny)
            masks.clear()
            masks[key] = mask, order, partner
        return masks[key]

    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        mask, order, partner = prepared(q.shape[0], groups, q.device)
        z = unit_rows(q, k)[order]
        positive = (z.float() * z[partner].float()).sum(1) / temperature
        return (log_sum(z, z, mask, 1 / temperature) - positive).mean()

    return call


def queue(setting: Setting, temperature: float) -> Queue:
    log_sum = log_sums(setting)

    def call(q: Tensor, k: Tensor, entries: Tensor) -> Tensor:
        z, key = unit_rows(q, k).chunk(2)
        positive = (z.float() * key.float()).sum(1) / temperature
        negatives = log_sum(z, entries, None, 1 / temperature)
        return (torch.logaddexp(positive, negatives) - positive).mean()

    return call


NOTE = "the block mask is made outside the measured time"

PEERS = (
    Peer(
        "FlexAttention", "torch", "loss", loss, NOTE, groups=True, most_rows=262_144, gradients_on_cpu=False
    ),
    Peer("FlexAttention", "torch", "queue", queue, most_rows=262_144, gradients_on_cpu=False),
)

"""Projection heads for pretraining, as in PSCL (doi 10.1038/s41598-025-32855-5). Fine-tuning does not use them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NARROW = 8
"""Inputs of a group up to which a CPU multiplies faster by the matrix of all groups, most of which is zero."""


class GlobalHead(nn.Module):
    """Bottleneck map (B, C, h, w) to one vector per image (B, projection): mean, linear, ReLU, linear."""

    def __init__(self, channels: int, *, hidden: int, projection: int) -> None:
        super().__init__()
        hidden = min(hidden, channels)
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, projection)
        )

    def forward(self, bottleneck: Tensor) -> Tensor:
        return self.layers(bottleneck.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class GroupedLinear(nn.Module):
    """A grouped 1x1 convolution of patch vectors (..., in) to (..., out), computed as one batched matrix product,
    or as one product where that is faster."""

    def __init__(self, in_features: int, out_features: int, groups: int) -> None:
        super().__init__()
        if in_features % groups or out_features % groups:
            raise ValueError(
                f"the widths {in_features} and {out_features} must be multiples of groups ({groups})"
            )
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups))
        self.bias = nn.Parameter(torch.empty(out_features))
        # Same initialisation as nn.Conv2d, whose fan-in is the number of inputs of one group.
        bound = (in_features // groups) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, patches: Tensor) -> Tensor:
        if patches.device.type == "cpu" and self.weight.shape[1] <= _NARROW:
            parts = self.weight.view(self.groups, -1, self.weight.shape[1])
            dense = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
            return F.linear(patches, dense, self.bias)
        lead = patches.shape[:-1]
        grouped = patches.reshape(-1, self.groups, self.weight.shape[1]).transpose(0, 1)
        weight = self.weight.view(self.groups, -1, self.weight.shape[1]).transpose(1, 2)
        return (torch.bmm(grouped, weight).transpose(0, 1).reshape(*lead, -1)) + self.bias


class PatchHead(nn.Module):
    """Patch vectors (..., C) of one decoder map to (..., projection).

    Grouped linear, LayerNorm, ReLU, grouped linear. Each patch is independent, so only sampled patches are projected.
    """

    def __init__(self, channels: int, *, hidden: int, projection: int, groups: int) -> None:
        super().__init__()
        hidden = min(hidden, channels)
        self.expand = GroupedLinear(channels, hidden, groups)
        self.norm = nn.LayerNorm(hidden)
        self.project = GroupedLinear(hidden, projection, groups)

    def forward(self, patches: Tensor) -> Tensor:
        return self.project(F.relu(self.norm(self.expand(patches))))  # type: ignore[no-any-return]

"""The U-Net trunk shared by every method (figure 2 of the PSCL paper, doi 10.1038/s41598-025-32855-5).

Shape legend: B images, C channels, h w image pixels, S scales (S = len(widths) - 1; scale 0 is the coarsest
decoder map, scale S - 1 has full resolution).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.config import ModelConfig


class Features(NamedTuple):
    """What the trunk gives: the bottleneck (B, widths[-1], h', w') and the decoder maps, coarse to fine."""

    bottleneck: Tensor
    scales: tuple[Tensor, ...]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel. The permutation costs nothing in channels-last memory."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Sequential):
    """Twice: 3x3 convolution without bias, normalisation, LeakyReLU(0.01)."""

    def __init__(self, in_channels: int, out_channels: int, second_norm: type[nn.Module]) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            second_norm(out_channels),
            nn.LeakyReLU(inplace=True),
        )


class UpBlock(nn.Module):
    """Transposed convolution (2H - 1), zero padding to the skip's size, concatenation, block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.block = Block(2 * out_channels, out_channels, ChannelNorm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, cols = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
        return self.block(torch.cat((skip, x), dim=1))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Trunk: images (B, C, h, w) in 0..1 to :class:`Features`.

    Intensities are normalised inside, so that weights carry all that prediction needs. Any h and w of at
    least ``2 ** S`` work.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)
        self.encoder = nn.ModuleList(
            Block(a, b, nn.BatchNorm2d) for a, b in zip((config.in_channels, *widths), widths, strict=False)
        )
        self.decoder = nn.ModuleList(
            UpBlock(a, b) for a, b in zip(widths[::-1], widths[-2::-1], strict=False)
        )

    @property
    def scale_widths(self) -> tuple[int, ...]:
        """Channels of the decoder maps, coarse to fine."""
        return self.config.widths[-2::-1]

    def forward(self, images: Tensor) -> Features:
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """The encoder's maps, full resolution first; the last is the bottleneck."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        maps = []
        for depth, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if depth else x)
            maps.append(x)
        return tuple(maps)

    def decode(self, maps: Sequence[Tensor]) -> Features:
        """The decoder on what :meth:`encode` gave."""
        x = maps[-1]
        scales = []
        for up, skip in zip(self.decoder, maps[-2::-1], strict=True):
            x = up(x, skip)
            scales.append(x)
        return Features(maps[-1], tuple(scales))


class SegmentationNet(nn.Module):
    """Trunk and a linear classifier of each pixel of the finest decoder map: logits (B, classes, h, w)."""

    def __init__(self, trunk: UNet, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.classifier = nn.Conv2d(trunk.config.widths[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.trunk(images).scales[-1])  # type: ignore[no-any-return]

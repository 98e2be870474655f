"""The U-Net of the PSCL paper (figure 2, doi 10.1038/s41598-025-32855-5).

Shape legend: B images, C channels, h w image pixels, S = len(widths) - 1 scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.config import Count, Positive
from pscl_hpc.models.layers import GroupNorm, UpConv
from pscl_hpc.models.trunk import TRUNKS, Features, MapShape, Trunk, TrunkConfig, TrunkMaps, channels_last

_GROUPS = 8
"""Groups of channels of the normalisation ``group``."""


class UNetConfig(TrunkConfig):
    """The U-Net of the PSCL paper."""

    name: Literal["unet"] = "unet"
    display_name: ClassVar[str] = "U-Net"
    widths: tuple[Count, ...] = (32, 64, 128, 256)
    """Channels from full resolution to the bottleneck; each level halves the resolution."""
    norm: Literal["batch", "instance", "group"] = "batch"
    """Normalisation: batch as in the paper, instance of each channel of each window, or group of eight groups of
    channels of each window. The last two do not depend on the other windows of a batch."""
    mean: tuple[float, ...] = (0.5,)
    """Mean of the input (0..1), which is subtracted; one value, or one per channel."""
    std: tuple[Positive, ...] = (0.25,)
    """Standard deviation of the input, by which it is divided; one value, or one per channel."""

    @model_validator(mode="after")
    def _consistent(self) -> UNetConfig:
        if len(self.widths) < 2:
            raise ValueError("widths needs at least two values, for one scale and the bottleneck")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.in_channels):
                raise ValueError(
                    f"{key} has {len(values)} values, but needs 1 or in_channels ({self.in_channels})"
                )
        return self

    @property
    def maps(self) -> TrunkMaps:
        """See :class:`TrunkConfig`."""
        encoder = tuple(MapShape(width, 1 << level) for level, width in enumerate(self.widths))
        return TrunkMaps(encoder, encoder[-2::-1])

    def check_window(self, key: str, size: tuple[int, int], images: int) -> None:
        """See :class:`TrunkConfig`."""
        super().check_window(key, size, images)
        channels, stride = self.maps.bottleneck
        groups = {"batch": 0, "instance": channels, "group": math.gcd(_GROUPS, channels)}[self.norm]
        if groups == channels and max(size) < 2 * stride:
            raise ValueError(
                f"{key} is {list(size)}, but with norm={self.norm} the bottleneck of this trunk (model, stride {stride}) "
                f"then has a single value to normalise; increase {key} to at least {2 * stride} pixels along one side"
            )


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    # Equal to nn.InstanceNorm2d with affine=True, which refuses maps of one pixel.
    "instance": lambda channels: GroupNorm(channels, channels),
    # Fewer groups where eight do not divide the channels.
    "group": lambda channels: GroupNorm(math.gcd(_GROUPS, channels), channels),
}


class LayerNormAct2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel, and LeakyReLU. In channels-last memory the permutations need no copy.

    The activation comes before the permutation: in place on a view, its backward pass would copy to channels-first memory.
    """

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(input.permute(0, 2, 3, 1))
        return F.leaky_relu(x, inplace=True).permute(0, 3, 1, 2)


class Block(nn.Sequential):
    """Twice: 3x3 convolution without bias, normalisation, LeakyReLU(0.01)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        second_norm: Callable[[int], nn.Module],
        first_norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            first_norm(out_channels),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            second_norm(out_channels),
            nn.Identity() if second_norm is LayerNormAct2d else nn.LeakyReLU(inplace=True),
        )


class UpBlock(nn.Module):
    """Transposed convolution (2H - 1), zero padding to the size of the skip, concatenation, block."""

    def __init__(self, in_channels: int, out_channels: int, first_norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.up = UpConv(in_channels, out_channels, 3, stride=2, padding=1)
        self.block = Block(2 * out_channels, out_channels, LayerNormAct2d, first_norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, cols = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
        return self.block(torch.cat((skip, x), dim=1))  # type: ignore[no-any-return]


@TRUNKS.register(UNetConfig)
class UNet(Trunk):
    """The trunk of :class:`UNetConfig`."""

    config: UNetConfig
    encoder: nn.ModuleList
    decoder: nn.ModuleList
    recomputed = (Block,)

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, norm = config.widths, _NORMS[config.norm]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)
        self.encoder = nn.ModuleList(
            Block(a, b, norm, norm) for a, b in zip((config.in_channels, *widths), widths, strict=False)
        )
        self.decoder = nn.ModuleList(
            UpBlock(a, b, norm) for a, b in zip(widths[::-1], widths[-2::-1], strict=False)
        )

    def normalise(self, images: Tensor) -> Tensor:
        """See :class:`Trunk`."""
        return (images - self.mean) / self.std

    def denormalise(self, values: Tensor) -> Tensor:
        """See :class:`Trunk`."""
        return values * self.std + self.mean

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Trunk`."""
        x = channels_last(self.normalise(images))
        maps = []
        for depth, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if depth else x)
            maps.append(x)
        return tuple(maps)

    def decode(self, maps: Sequence[Tensor]) -> Features:
        """See :class:`Trunk`."""
        x = maps[-1]
        scales = []
        for up, skip in zip(self.decoder, maps[-2::-1], strict=True):
            x = up(x, skip)
            scales.append(x)
        return Features(maps[-1], tuple(scales))

"""A decoder with skip connections for encoders whose first map is coarser than the image.

Shape legend as in :mod:`pscl_hpc.models.trunk`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.models.layers import GroupNorm, concatenate
from pscl_hpc.models.trunk import Features, TrunkMaps

GROUPS = 8
"""Groups of the normalisation, which does not depend on the batch size; widths are multiples of it."""


class SkipDecoder(nn.Module):
    """From the coarsest map to full resolution, at each step to the size of the next finer map.

    The skip connection at full resolution is a convolution of the input.

    Args:
        in_channels: Channels of the input.
        maps: The maps of the trunk: the first is that of :attr:`detail`, and each of ``scales`` has the stride of a map
            of the encoder.
    """

    def __init__(self, in_channels: int, maps: TrunkMaps) -> None:
        super().__init__()
        ups = [
            _Up(above.channels, skip.channels, scale.channels)
            for above, skip, scale in zip(
                (maps.bottleneck, *maps.scales), maps.encoder[-2::-1], maps.scales, strict=False
            )
        ]
        self.detail = _norm_conv(in_channels, maps.encoder[0].channels)
        self.ups = nn.ModuleList(ups)

    def forward(self, maps: Sequence[Tensor]) -> Features:
        """The features of encoder maps, of which the first is :attr:`detail` of the input."""
        x, scales = maps[-1], []
        for up, skip in zip(self.ups, maps[-2::-1], strict=True):
            x = up(x, skip)
            scales.append(x)
        return Features(maps[-1], tuple(scales))


def _norm_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        GroupNorm(GROUPS, outputs),
        nn.ReLU(inplace=True),
    )


class _Up(nn.Module):
    """Bilinear upsampling to the size of the skip, concatenation, two 3x3 convolutions with group normalisation."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(_norm_conv(inputs + skip, outputs), _norm_conv(outputs, outputs))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
        return self.block(concatenate(x, skip))  # type: ignore[no-any-return]

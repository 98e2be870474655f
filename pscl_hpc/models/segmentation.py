"""The segmentation model, and a second decoder for semi-supervised training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.models.trunk import Trunk, TrunkMaps
from pscl_hpc.models.unet import Block, LayerNormAct2d


class SegmentationNet(nn.Module):
    """A trunk and a linear classifier of each pixel of the finest decoder map: logits (B, classes, h, w)."""

    def __init__(self, trunk: Trunk, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.classifier = nn.Conv2d(trunk.maps.scales[-1].channels, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.trunk(images).scales[-1])  # type: ignore[no-any-return]


class BilinearDecoder(nn.Module):
    """A second decoder for the encoder of a trunk: the output of ``Trunk.encode`` to logits (B, classes, h, w).

    At each scale: bilinear upsampling to the size of the skip, 1x1 convolution to its width, concatenation, block. The
    structure differs from the decoder of the trunk, so that the two make different errors (IDEAL, arXiv 2210.15075). It
    is dropped after training.
    """

    def __init__(self, maps: TrunkMaps, classes: int) -> None:
        super().__init__()
        widths = [level.channels for level in maps.encoder]
        wide, narrow = widths[:0:-1], widths[-2::-1]
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(wide, narrow, strict=True))
        self.blocks = nn.ModuleList(Block(2 * width, width, LayerNormAct2d) for width in narrow)
        self.classifier = nn.Conv2d(widths[0], classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[-1]
        for reduce, block, skip in zip(self.reduce, self.blocks, maps[-2::-1], strict=True):
            # The 1x1 convolution commutes with upsampling, and is cheaper before it.
            x = F.interpolate(reduce(x), size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat((skip, x), dim=1))
        return self.classifier(x)  # type: ignore[no-any-return]

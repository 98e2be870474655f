"""A second decoder for the trunk's encoder, of another build: bilinear upsampling in place of transposed convolutions.

Shape legend as in ``unet``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.config import ModelConfig
from pscl_hpc.models.unet import Block, ChannelNorm


class BilinearDecoder(nn.Module):
    """What ``UNet.encode`` gives to logits (B, classes, h, w).

    Per scale: bilinear upsampling to the skip's size, 1x1 convolution to its width, concatenation, block. It serves to
    disagree with the trunk's decoder in other places; it is dropped after training.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        wide = config.widths[:0:-1]
        narrow = config.widths[-2::-1]
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(wide, narrow, strict=True))
        self.blocks = nn.ModuleList(Block(2 * width, width, ChannelNorm) for width in narrow)
        self.classifier = nn.Conv2d(config.widths[0], classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[-1]
        for reduce, block, skip in zip(self.reduce, self.blocks, maps[-2::-1], strict=True):
            # The 1x1 convolution commutes with the upsampling and is cheaper before it.
            x = F.interpolate(reduce(x), size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat((skip, x), dim=1))
        return self.classifier(x)  # type: ignore[no-any-return]

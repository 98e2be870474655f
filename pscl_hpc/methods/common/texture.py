"""Fixed descriptors of grey-level texture: what a network that has learnt nothing yet can be guided by.

Shape legend: B images, C channels, h w pixels, H W patches of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH_WINDOWS = (3, 7, 15, 31)
"""Windows that patches are described by, in pixels."""


def texture(images: Tensor, windows: tuple[int, ...]) -> Tensor:
    """Fixed descriptors of each pixel's surroundings: (B, 2 * len(windows), h, w).

    Mean and standard deviation of the grey level in squares of these odd numbers of pixels, after each image's level
    and contrast are set to 0 and 1. They need no training, and no brightness or contrast of a whole image changes them.
    """
    grey = images.float().mean(dim=1, keepdim=True)
    spread = grey.std(dim=(2, 3), keepdim=True, correction=0)
    grey = (grey - grey.mean(dim=(2, 3), keepdim=True)) / torch.where(spread > 1e-6, spread, 1.0)
    found = []
    for window in windows:
        mean, square = _mean_around(grey, window), _mean_around(grey.square(), window)
        found += [mean, (square - mean.square()).clamp_min(0).sqrt()]
    return torch.cat(found, dim=1)


def texture_patches(described: Tensor, height: int, width: int) -> Tensor:
    """Direction of each patch's texture from the mean of its image, (B, height * width, D), of length 1.

    Descriptors are averaged over the patch, and each gets mean 0 and standard deviation 1 over the patches of an image. In
    an image of one grey level all vectors are 0.

    Args:
        described: What :func:`texture` gives, (B, D, h, w).
        height: Patches down.
        width: Patches across.
    """
    patches = F.adaptive_avg_pool2d(described, (height, width)).flatten(2).transpose(1, 2)
    spread = patches.std(dim=1, keepdim=True, correction=0)
    patches = (patches - patches.mean(dim=1, keepdim=True)) / torch.where(spread > 1e-6, spread, 1.0)
    return F.normalize(patches, dim=-1)


def _mean_around(images: Tensor, window: int) -> Tensor:
    """Mean over the part of a square around each pixel that lies in the image; rows first, then columns."""
    half = window // 2
    rows = F.avg_pool2d(images, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, half), count_include_pad=False)

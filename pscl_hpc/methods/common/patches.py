"""Patches of feature maps: their vectors, their texture, and the classes that they show.

Shape legend: B images, C channels, h w pixels, H W patches of a map, T sampled patches, D width of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.archive import IGNORE_INDEX
from pscl_hpc.methods.base import PatchSample, Views
from pscl_hpc.views import view_to_source

PATCH_WINDOWS = (3, 7, 15, 31)
"""Sides of the squares for the texture descriptors of patches, in pixels."""


def patches_of(patch_map: Tensor) -> Tensor:
    """Map (B, C, H, W) as patch vectors (B, H * W, C), without a copy in channels-last memory."""
    return patch_map.permute(0, 2, 3, 1).flatten(1, 2)


def gather_patches(patch_map: Tensor, patches: Tensor) -> Tensor:
    """Vectors (B, T, C) of the patches (B, T) of a map (B, C, H, W)."""
    flat = patches_of(patch_map)
    return flat.gather(1, patches.unsqueeze(-1).expand(-1, -1, flat.shape[2]))


def texture(images: Tensor, windows: tuple[int, ...]) -> Tensor:
    """Fixed texture descriptors of each pixel: (B, 2 * len(windows), h, w).

    Mean and standard deviation of the grey level in squares with these odd sides around the pixel. Each image is first
    standardised to mean 0 and standard deviation 1, so brightness and contrast of an image do not matter.
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
    """Texture vectors of patches, (B, height * width, D), of length 1.

    Descriptors are averaged over the patch and standardised over the patches of an image. All vectors of an image with
    one grey level are 0.

    Args:
        described: Output of :func:`texture`, (B, D, h, w).
        height: Rows of patches.
        width: Columns of patches.
    """
    patches = F.adaptive_avg_pool2d(described, (height, width)).flatten(2).transpose(1, 2)
    spread = patches.std(dim=1, keepdim=True, correction=0)
    patches = (patches - patches.mean(dim=1, keepdim=True)) / torch.where(spread > 1e-6, spread, 1.0)
    return F.normalize(patches, dim=-1)


def _mean_around(images: Tensor, window: int) -> Tensor:
    """Mean over the part of a square around each pixel that is inside the image; rows first, then columns."""
    half = window // 2
    rows = F.avg_pool2d(images, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, half), count_include_pad=False)


@torch.no_grad()
def patch_purity(views: Views, sample: PatchSample, height: int, width: int) -> Tensor:
    """Share of each image's sampled patches whose centre has the class of the template, (B,); NaN without a mask."""
    found = patch_labels(views, sample.key_patches.clamp_min(0), height, width)
    known = sample.valid & (found != IGNORE_INDEX) & views.comparable[:, None]
    hits = (known & (found == sample.classes)).sum(dim=1)
    return hits / torch.where(known.any(dim=1), known.sum(dim=1).float(), torch.nan)


def patch_labels(views: Views, patches: Tensor, height: int, width: int) -> Tensor:
    """Class at the centres of patches (B, T) of view k, int64 (B, T); 255 if unknown."""
    rows, cols = views.labels.shape[1:]
    y = (torch.div(patches, width, rounding_mode="floor") + 0.5) * rows / height - 0.5
    x = (patches % width + 0.5) * cols / width - 0.5
    source_y, source_x = view_to_source(views.geometry, y, x, rows, cols)
    index = source_y.round().long().clamp(0, rows - 1) * cols + source_x.round().long().clamp(0, cols - 1)
    return views.labels.flatten(1).gather(1, index).long()

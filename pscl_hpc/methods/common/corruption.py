"""Corruption of images that a network has to restore.

Corruptions are limited to known blocks, so that the loss can be: the skip connections of a U-Net would copy unchanged
pixels to the output.

Shape legend: B images, C channels, h w pixels.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import Count, Fraction, NonNegative, Positive, Strict


class CorruptionConfig(Strict):
    """Corruption of the images to restore. Everything is drawn for each image separately."""

    block: tuple[Count, Count] = (24, 64)
    """Smallest and largest side in pixels of the square blocks of an image. Blocks should be larger than the particles:
    small hidden parts can be guessed from their border."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Probability that a block is corrupted."""
    blank: NonNegative = 0.6
    """Relative frequency of blocks that are filled with the mean grey level of the image."""
    shuffle: NonNegative = 0.2
    """Relative frequency of blocks whose pixels are permuted within small windows."""
    noise: NonNegative = 0.2
    """Relative frequency of blocks with added white noise."""
    shuffle_window: Annotated[int, Field(ge=2)] = 8
    """Side of the windows of ``shuffle``, in pixels."""
    noise_std: Positive = 0.25
    """Standard deviation of ``noise``; grey levels are 0..1."""
    cutout: Fraction = 0.5
    """Probability that additionally one rectangle is filled with the mean grey level."""
    cutout_side: tuple[Fraction, Fraction] = (0.25, 0.5)
    """Smallest and largest side of this rectangle, as a share of the side of the image."""

    @model_validator(mode="after")
    def _consistent(self) -> CorruptionConfig:
        for key, (low, high) in (("block", self.block), ("cutout_side", self.cutout_side)):
            if low > high:
                raise ValueError(
                    f"{key} is [{low}, {high}]; the first value must not be larger than the second"
                )
        if self.blank + self.shuffle + self.noise == 0:
            raise ValueError("blank, shuffle and noise are all 0; at least one must be positive")
        return self


class Corrupted(NamedTuple):
    """Corrupted images."""

    images: Tensor
    """(B, C, h, w) in 0..1."""
    mask: Tensor
    """Pixels of corrupted blocks, bool (B, 1, h, w)."""


@torch.no_grad()
def corrupt(images: Tensor, config: CorruptionConfig, generators: list[torch.Generator]) -> Corrupted:
    """Corrupt each image with the random numbers of its own generator.

    An image is divided into square blocks of one random side at a random offset. With probability ``config.share`` a
    block is blanked, shuffled or given noise, with the relative frequencies of ``config``. A blank rectangle may be
    added.

    Args:
        images: (B, C, h, w) in 0..1.
        config: Probabilities and ranges.
        generators: One per image, on the device of the images.
    """
    drawn = [_one(image, config, generator) for image, generator in zip(images, generators, strict=True)]
    return Corrupted(torch.stack([item.images for item in drawn]), torch.stack([item.mask for item in drawn]))


def _one(image: Tensor, config: CorruptionConfig, generator: torch.Generator) -> Corrupted:
    """Corrupt one image (C, h, w). Number and order of draws do not depend on the values drawn before."""
    height, width = image.shape[1:]
    scalars = torch.rand(8, generator=generator, device=image.device, dtype=torch.float64).tolist()
    side = _between(config.block, scalars[0])
    operation = _operations(height, width, side, scalars[1:3], config, generator, image.device)
    noise = torch.randn(image.shape, generator=generator, device=image.device)
    shuffled = _shuffle(image, config.shuffle_window, generator)
    if scalars[3] < config.cutout:
        rows, cols = _rectangle(height, width, scalars[4:], config.cutout_side)
        operation[rows, cols] = 1
    level = image.mean(dim=(1, 2), keepdim=True).expand_as(image)
    noisy = (image + config.noise_std * noise.to(image)).clamp(0, 1)
    result = torch.where(operation == 1, level, torch.where(operation == 2, shuffled, image))
    result = torch.where(operation == 3, noisy, result)
    return Corrupted(result, (operation > 0).unsqueeze(0))


def _operations(
    height: int,
    width: int,
    side: int,
    offset: list[float],
    config: CorruptionConfig,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Operation for each pixel, int64 (h, w): 0 none, 1 blank, 2 shuffle, 3 noise."""
    rows, cols = math.ceil(height / side) + 1, math.ceil(width / side) + 1
    draw = torch.rand((2, rows, cols), generator=generator, device=device, dtype=torch.float64)
    parts = torch.tensor((config.blank, config.shuffle, config.noise), device=device, dtype=torch.float64)
    kind = 1 + torch.bucketize(draw[1] * parts.sum(), parts.cumsum(0)[:-1], right=True)
    of_block = torch.where(draw[0] < config.share, kind, 0)
    top, left = (int(share * side) for share in offset)
    row = (torch.arange(height, device=device) + top) // side
    col = (torch.arange(width, device=device) + left) // side
    return of_block[row[:, None], col[None, :]]


def _shuffle(image: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """Permute the pixels within each window of a fixed grid. Partial windows are padded with their edge."""
    height, width = image.shape[1:]
    rows, cols = -(-height // window), -(-width // window)
    padded = F.pad(image[None], (0, cols * window - width, 0, rows * window - height), mode="replicate")[0]
    tiles = padded.reshape(-1, rows, window, cols, window).permute(0, 1, 3, 2, 4)
    tiles = tiles.reshape(-1, rows * cols, window * window)
    keys = torch.rand(tiles.shape[1:], generator=generator, device=image.device)
    tiles = tiles.gather(2, keys.argsort(dim=1).expand_as(tiles))
    tiles = tiles.reshape(-1, rows, cols, window, window).permute(0, 1, 3, 2, 4)
    return tiles.reshape(-1, rows * window, cols * window)[:, :height, :width]


def _rectangle(
    height: int, width: int, draws: list[float], sides: tuple[float, float]
) -> tuple[slice, slice]:
    low, high = sides
    found = []
    for size, length, place in ((height, draws[0], draws[1]), (width, draws[2], draws[3])):
        kept = max(1, round(size * (low + (high - low) * length)))
        start = min(int(place * (size - kept + 1)), size - kept)
        found.append(slice(start, start + kept))
    return found[0], found[1]


def _between(limits: tuple[int, int], draw: float) -> int:
    low, high = limits
    return min(low + int(draw * (high - low + 1)), high)

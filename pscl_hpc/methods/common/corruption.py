"""Corruptions of textures that a network is to undo. Each image has its own draws.

A corruption is confined to blocks, and the blocks are known: where nothing was changed there is nothing to restore, and
the skip connections of a U-Net would hand the answer through.

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
    """What is done to an image that is to be restored. Every image has its own draw of everything."""

    block: tuple[Count, Count] = (24, 64)
    """Smallest and largest side, in pixels, of the square blocks that an image is divided into. Blocks should be
    larger than the particles, or what they hide can be read off their rim."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Probability of each block to be corrupted."""
    blank: NonNegative = 0.6
    """Relative frequency of blocks that are filled with the image's mean level."""
    shuffle: NonNegative = 0.2
    """Relative frequency of blocks whose pixels change places within small windows."""
    noise: NonNegative = 0.2
    """Relative frequency of blocks with added white noise."""
    shuffle_window: Annotated[int, Field(ge=2)] = 8
    """Side of the windows of ``shuffle``, in pixels."""
    noise_std: Positive = 0.25
    """Standard deviation of ``noise``, in grey levels of 0..1."""
    cutout: Fraction = 0.5
    """Probability that one rectangle is filled with the mean level besides."""
    cutout_side: tuple[Fraction, Fraction] = (0.25, 0.5)
    """Smallest and largest side of that rectangle, as a share of the image's side."""

    @model_validator(mode="after")
    def _consistent(self) -> CorruptionConfig:
        for key, (low, high) in (("block", self.block), ("cutout_side", self.cutout_side)):
            if low > high:
                raise ValueError(f"{key} is [{low}, {high}]: the smallest comes first")
        if self.blank + self.shuffle + self.noise == 0:
            raise ValueError("blank, shuffle and noise are all 0: blocks would stay as they are")
        return self


class Corrupted(NamedTuple):
    """Images to be restored."""

    images: Tensor
    """(B, C, h, w) in 0..1."""
    mask: Tensor
    """Pixels that belong to a corrupted block, bool (B, 1, h, w)."""


@torch.no_grad()
def corrupt(images: Tensor, config: CorruptionConfig, generators: list[torch.Generator]) -> Corrupted:
    """Corrupt each image with the numbers of its own generator.

    An image is divided into square blocks of one random side at a random offset. Each block is blanked, shuffled or
    given noise with probability ``config.share``, in the frequencies of ``config``; a blank rectangle may come on top.

    Args:
        images: (B, C, h, w) in 0..1.
        config: Ranges.
        generators: One for each image, on the device of the images.

    Returns:
        New images, and what is corrupted in them.
    """
    drawn = [_one(image, config, generator) for image, generator in zip(images, generators, strict=True)]
    return Corrupted(torch.stack([item.images for item in drawn]), torch.stack([item.mask for item in drawn]))


def _one(image: Tensor, config: CorruptionConfig, generator: torch.Generator) -> Corrupted:
    """One image (C, h, w). What is drawn, and in which order, does not depend on the outcome of earlier draws."""
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
    """What is done to each pixel, int64 (h, w): 0 nothing, 1 blank, 2 shuffle, 3 noise."""
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
    """Pixels change places within each window of a fixed grid; what does not fill a window is completed by its edge."""
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

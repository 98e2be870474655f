"""Random intensity changes of a batch, different for each image.

Kornia's ColorJitter does not support one channel, and torchvision has no CPU build for every version of torch. Images
are (B, C, h, w) in 0..1 with C = 1 or 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import JitterConfig
from pscl_hpc.grey import LUMA
from pscl_hpc.seeding import Slots


def jitter(
    images: Tensor, config: JitterConfig, generator: torch.Generator, slots: Slots | None = None
) -> Tensor:
    """Change brightness, contrast, saturation, hue, gamma, shading, blur and noise, in this order, and clamp to 0..1.

    Each image is changed with probability ``config.probability``. The same random numbers are drawn for every
    configuration, so that disabling one change does not affect the others.

    Args:
        images: (B, C, h, w) in 0..1.
        config: Ranges of the changes.
        generator: On the CPU; a few numbers per image are drawn.
        slots: Positions of the images in the batch of all ranks; by default they are the whole batch.

    Returns:
        A new tensor of the same shape.
    """
    batch, channels = images.shape[:2]
    slots = slots or Slots.all(batch)
    places = list(slots.places)
    draws = torch.rand((8, slots.total, 1, 1, 1), generator=generator)[:, places].to(images)
    chosen, brightness, contrast, saturation, hue, gamma, blur, noise = draws

    def factor(draw: Tensor, width: float) -> Tensor:
        return (1 + width * (2 * draw - 1)).clamp_min(0)

    changed = (images * factor(brightness, config.brightness)).clamp(0, 1)
    mean = _grey(changed).mean(dim=(1, 2, 3), keepdim=True)
    changed = (mean + (changed - mean) * factor(contrast, config.contrast)).clamp(0, 1)
    if channels == 3:
        grey = _grey(changed)
        changed = (grey + (changed - grey) * factor(saturation, config.saturation)).clamp(0, 1)
        if config.hue:
            changed = _turn_hue(changed, config.hue * (2 * hue - 1))
    if config.gamma:
        changed = changed.clamp_min(1e-6) ** torch.exp(config.gamma * (2 * gamma - 1))
    if config.shading:
        # From a copy, so that shading does not change later draws from the generator.
        own = torch.Generator().set_state(generator.get_state())
        ramps = torch.rand((2, slots.total, 1, 1, 1), generator=own)[:, places].to(images)
        changed = changed + config.shading * (2 * ramps[0] - 1) * _ramp(images, 2 * math.pi * ramps[1])
    if config.blur:
        changed = _blur(changed, (config.blur * _of_share(blur, config.blur_share)).view(batch), config.blur)
    if config.noise:
        # From a copy, so that noise does not change later draws from the generator.
        own = torch.Generator().set_state(generator.get_state())
        seeds = torch.randint(0, 2**62, (slots.total,), generator=own)[places]
        changed = changed + config.noise * _of_share(noise, config.noise_share) * _white_noise(
            images, seeds.tolist()
        )
    return torch.where(chosen < config.probability, changed.clamp(0, 1), images)


def _ramp(images: Tensor, angle: Tensor) -> Tensor:
    """A linear ramp per image from -1/2 to 1/2 along ``angle``, (B, 1, h, w), between the farthest points."""
    height, width = images.shape[2:]
    rows = torch.linspace(-1, 1, height, device=images.device, dtype=images.dtype).view(1, 1, -1, 1)
    cols = torch.linspace(-1, 1, width, device=images.device, dtype=images.dtype).view(1, 1, 1, -1)
    sin, cos = torch.sin(angle), torch.cos(angle)
    return (rows * sin + cols * cos) / (2 * (sin.abs() + cos.abs()))


def _of_share(draw: Tensor, share: float) -> Tensor:
    """U(0, 1) for a ``share`` of the draws, 0 for the others, from draws of U(0, 1)."""
    return ((draw - (1 - share)) / share).clamp_min(0) if share else torch.zeros_like(draw)


def _white_noise(images: Tensor, seeds: list[int]) -> Tensor:
    """Standard normal noise of the shape of ``images``, with one seed per image."""
    generator = torch.Generator(images.device)
    noise = torch.empty_like(images)
    for image, seed in zip(noise, seeds, strict=True):
        image.normal_(generator=generator.manual_seed(seed))
    return noise


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate hue by ``turn`` full turns, (B, 1, 1, 1), about the grey axis of RGB space."""
    angle = (turn * 2 * math.pi).flatten()
    cos, sin = torch.cos(angle), torch.sin(angle)
    third, root = (1 - cos) / 3, sin / math.sqrt(3)
    diagonal, up, down = cos + third, third - root, third + root
    rows = (diagonal, up, down, down, diagonal, up, up, down, diagonal)
    matrix = torch.stack(rows, dim=1).view(-1, 3, 3)
    return torch.einsum("bij,bjhw->bihw", matrix, images).clamp(0, 1)


def _blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur with a standard deviation in pixels for each image, (B,)."""
    batch, channels, height, width = images.shape
    radius = min(max(1, math.ceil(3 * largest)), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3).view(-1, 1)) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = F.pad(images.reshape(1, batch * channels, height, width), (radius,) * 4, mode="reflect")
    flat = F.conv2d(flat, kernel.view(-1, 1, 1, 2 * radius + 1), groups=batch * channels)
    flat = F.conv2d(flat, kernel.view(-1, 1, 2 * radius + 1, 1), groups=batch * channels)
    return flat.view(batch, channels, height, width)

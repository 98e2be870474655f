"""Batch normalisation with statistics of the predicted image, for images unlike the training images.

Replacing the training statistics by those of the predicted image is prediction-time batch normalisation (Nado et al.
2020); mixing the two is due to Schneider et al. (2020, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = 2
"""Rows and columns of sample windows in an image larger than one window."""


def sample_windows(height: int, width: int, tile: int) -> list[tuple[int, int, int, int]]:
    """Equal windows (y0, x0, height, width) that represent an image: the whole image, or the centres of its quarters.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        tile: Largest side of a window in pixels.
    """
    rows, columns = _starts(height, tile), _starts(width, tile)
    return [(y, x, min(tile, height), min(tile, width)) for y in rows for x in columns]


def _starts(length: int, tile: int) -> list[int]:
    if length <= tile:
        return [0]
    centres = ((part + 0.5) * length / _PARTS for part in range(_PARTS))
    return [min(max(0, round(centre - tile / 2)), length - tile) for centre in centres]


@contextmanager
def adapted(net: nn.Module, share: float, forward: Callable[[], Any]) -> Iterator[None]:
    """A block in which batch normalisation uses ``(1 - share) * training + share * forward`` statistics.

    Each layer takes its statistics from the output of the already adapted layers before it. The network is restored
    after the block.

    Args:
        net: A network in evaluation mode.
        share: Weight of the new statistics, 0 to 1.
        forward: Runs ``net`` on the images to adapt to.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    trained = [[value.clone() for value in _statistics(layer)] for layer in layers]

    def mix(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        for value, new in zip(_statistics(layer), (mean, variance), strict=True):
            value.lerp_(new.to(value), share)

    handles = [layer.register_forward_pre_hook(mix) for layer in layers]
    try:
        try:
            with torch.no_grad():
                forward()
        finally:
            for handle in handles:
                handle.remove()
        yield
    finally:
        for layer, before in zip(layers, trained, strict=True):
            for value, kept in zip(_statistics(layer), before, strict=True):
                value.copy_(kept)


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Running mean and variance, (channels,) each."""
    mean, variance = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean, variance

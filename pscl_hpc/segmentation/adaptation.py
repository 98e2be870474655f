"""Normalising by an image's own statistics, for images unlike those that the network was trained on.

Batch normalisation has learnt what levels and contrasts are usual in its training images. Taking the statistics from
the image that is predicted is prediction-time batch normalisation (Nado et al. 2020); taking a share of them, the rest
from training, is due to Schneider et al. (2020, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = 2
"""Rows and columns of windows that stand for an image too large for one."""


def sample_windows(height: int, width: int, tile: int) -> list[tuple[int, int, int, int]]:
    """(y0, x0, height, width) of equal windows that stand for an image: all of it, or the middles of its quarters.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.
        tile: Longest side of a window.
    """
    rows, columns = _places(height, tile), _places(width, tile)
    return [(y, x, min(tile, height), min(tile, width)) for y in rows for x in columns]


def _places(length: int, tile: int) -> list[int]:
    if length <= tile:
        return [0]
    middles = ((part + 0.5) * length / _PARTS for part in range(_PARTS))
    return [min(max(0, round(middle - tile / 2)), length - tile) for middle in middles]


@contextmanager
def adapted(net: nn.Module, share: float, forward: Callable[[], Any]) -> Iterator[None]:
    """A block in which batch normalisation uses statistics that are in part those of one forward pass.

    The pass goes layer by layer: each layer mixes the statistics of what the adapted layers before it give. After the
    block the network is as it was.

    Args:
        net: In evaluation mode.
        share: Of the pass in the statistics, 0 to 1; the rest is the training's.
        forward: Runs ``net`` on what it is to adapt to.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    trained = [[_statistic(value).clone() for value in _statistics(layer)] for layer in layers]
    handles = [layer.register_forward_pre_hook(_mixing(share)) for layer in layers]
    try:
        try:
            with torch.no_grad():
                forward()
        finally:
            for handle in handles:
                handle.remove()
        yield
    finally:
        for layer, kept in zip(layers, trained, strict=True):
            for value, before in zip(_statistics(layer), kept, strict=True):
                _statistic(value).copy_(before)


def _mixing(share: float) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def mix(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        for value, own in zip(_statistics(layer), (mean, variance), strict=True):
            _statistic(value).lerp_(own.to(_statistic(value)), share)

    return mix


def _statistics(layer: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None]:
    return layer.running_mean, layer.running_var


def _statistic(value: Tensor | None) -> Tensor:
    assert value is not None, "the network keeps the statistics of its training"
    return value

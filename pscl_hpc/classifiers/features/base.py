"""The interface of a feature set: an image to maps, from which every pixel takes its features.

Shape legend: C channels, h w pixels, N sampled pixels, F features of a pixel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import SerializeAsAny, WrapValidator
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import NamedConfig, Registry

_LARGEST = 6e4
"""Largest absolute value of a feature: half precision ends at 65,504."""


class Picture(NamedTuple):
    """An image, or a part of one, as feature sets read it."""

    image: Tensor
    """(C, h, w) in 0..1, with the channels and the standardisation that the feature set asks for."""
    grey: Tensor
    """(1, h, w) in 0..1: the grey level with mean 0.5 and standard deviation 1/6, by the statistics of the WHOLE image,
    clipped."""


@dataclass(frozen=True)
class PixelMaps:
    """Feature maps of one image or part of it.

    They are kept in half precision, in memory as on disk, so that a cached map gives the same numbers.
    """

    maps: tuple[Tensor, ...]
    """(C, h, w) float16 each."""
    strides: tuple[tuple[float, float], ...]
    """Image pixels per map pixel along rows and columns, for each map."""

    @classmethod
    def of(cls, maps: list[Tensor], strides: list[float]) -> PixelMaps:
        """Maps of any precision; values beyond half precision are clipped."""
        halves = tuple(m.clamp(-_LARGEST, _LARGEST).half().cpu() for m in maps)
        return cls(halves, tuple((stride, stride) for stride in strides))

    def __add__(self, other: PixelMaps) -> PixelMaps:
        return PixelMaps(self.maps + other.maps, self.strides + other.strides)

    def of_larger(self, factors: tuple[float, float]) -> PixelMaps:
        """The same maps for the image that was reduced by these factors along rows and columns to compute them."""
        return PixelMaps(self.maps, tuple((y * factors[0], x * factors[1]) for y, x in self.strides))

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Features (N, F) float32 of pixels; coarser maps are interpolated bilinearly between their centres.

        Args:
            rows: (N,) integers, in pixels of the image.
            columns: (N,) likewise.
        """
        found = []
        for values, stride in zip(self.maps, self.strides, strict=True):
            if stride == (1.0, 1.0):
                found.append(values[:, rows, columns].float())
                continue
            height, width = values.shape[1:]
            # A map's pixel i covers the image from i * stride to (i + 1) * stride.
            x = 2 * (columns.float() + 0.5) / (stride[1] * width) - 1
            y = 2 * (rows.float() + 0.5) / (stride[0] * height) - 1
            grid = torch.stack((x, y), dim=-1)[None, :, None]
            sampled = F.grid_sample(values[None].float(), grid, padding_mode="border", align_corners=False)
            found.append(sampled[0, :, :, 0])
        return torch.cat(found).T.contiguous()


class FeatureConfig(NamedConfig):
    """Base of the ``features`` section. It is stored in a classifier's file to compute the same features again."""

    def check_trunk(self, pretrained: str) -> None:
        """Raise ValueError where a pretrained trunk (a path, or empty) is given in vain, or needed and not given."""
        if pretrained:
            raise ValueError(
                f"pretrained names a trunk, but features.name is {self.name}, which has none; set features.name=trunk or "
                "remove pretrained"
            )


class FeatureSet(ABC):
    """Features of the pixels of an image.

    Args:
        config: The settings.
        pretrained: A pretraining run or a weights file, where the features are those of a trunk; else empty.
        initial: Without it, weights will be loaded from a classifier's file.
    """

    config: FeatureConfig
    count: int
    """F."""
    in_channels: int = 1
    """Channels of :attr:`Picture.image`."""
    standardise: bool = True
    """Whether :attr:`Picture.image` is standardised."""
    halo: int
    """Pixels around a part of an image that decide its features; beyond, their influence is negligible."""

    @abstractmethod
    def __init__(self, config: FeatureConfig, pretrained: str = "", *, initial: bool = True) -> None: ...

    @abstractmethod
    def maps(self, picture: Picture) -> PixelMaps:
        """The maps of an image, or of a part of one."""

    def to(self, device: torch.device) -> None:
        """Compute on this device, where that makes a difference."""
        return

    def weights(self) -> dict[str, Tensor]:
        """Weights to store, by name."""
        return {}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restore :meth:`weights`; RuntimeError where they do not fit."""
        return


FEATURES: Registry[FeatureConfig, FeatureSet] = Registry("pscl_hpc.classifiers.features", default="filters")

AnyFeatures = Annotated[SerializeAsAny[FeatureConfig], WrapValidator(FEATURES.choose)]
"""Type of a configuration's ``features`` section."""

"""Classical filters at several scales, as in Trainable Weka Segmentation and ilastik.

Shape legend as in :mod:`pscl_hpc.classifiers.features.base`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from scipy import ndimage
from torch import Tensor

from pscl_hpc.classifiers.features.base import FEATURES, FeatureConfig, FeatureSet, Picture, PixelMaps
from pscl_hpc.config import Strict

Map = npt.NDArray[np.float32]
_TRUNCATE = 3.0
"""Gaussians end after so many standard deviations."""


class FilterSettings(Strict):
    """Which filters."""

    sigmas: tuple[Annotated[float, Field(gt=0.0, le=64.0)], ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """Standard deviations of the Gaussian windows in pixels. Each gives 7 features: local mean and standard deviation,
    gradient magnitude, and the two eigenvalues of the Hessian and of the structure tensor."""
    medians: tuple[Annotated[int, Field(ge=3, le=31)], ...] = (5, 9)
    """Sides of the squares of median filters in pixels."""


class FilterConfig(FilterSettings, FeatureConfig):
    """Grey level, Gaussian, local deviation, gradient, Hessian, structure tensor and median."""

    name: Literal["filters"] = "filters"


@FEATURES.register(FilterConfig)
class Filters(FeatureSet):
    """The features of :class:`FilterConfig`: one map at full resolution."""

    config: FilterConfig

    def __init__(self, config: FilterConfig, pretrained: str = "", *, initial: bool = True) -> None:
        self.config = config
        self.count = filter_count(config)
        self.halo = filter_reach(config)

    def maps(self, picture: Picture) -> PixelMaps:
        return filter_maps(picture.grey, self.config)


def filter_count(settings: FilterSettings) -> int:
    """Features of a pixel."""
    return 1 + 7 * len(settings.sigmas) + len(settings.medians)


def filter_reach(settings: FilterSettings) -> int:
    """Largest distance of a pixel that a filter reads."""
    # The structure tensor filters twice, with half the width first; derivatives take a pixel more each.
    gaussian = max((math.ceil(_TRUNCATE * sigma * 1.5) + 4 for sigma in settings.sigmas), default=0)
    return max(gaussian, *(side // 2 for side in settings.medians), 0)


def filter_maps(image: Tensor, settings: FilterSettings) -> PixelMaps:
    """The filters of a grey image (1, h, w)."""
    grey: Map = image[0].numpy()
    found = [grey]
    for sigma in settings.sigmas:
        found += _scale(grey, sigma)
    found += [ndimage.median_filter(grey, size=side, mode="mirror") for side in settings.medians]
    return PixelMaps.of([torch.from_numpy(np.stack(found))], [1.0])


def _scale(grey: Map, sigma: float) -> Iterator[Map]:
    """The seven features of one scale. Derivatives are multiplied by sigma per order, so that scales compare."""
    mean = _blur(grey, sigma)
    yield mean
    yield np.sqrt(np.maximum(_blur(grey * grey, sigma) - mean * mean, 0))
    y, x = (sigma * part for part in _gradient(mean))
    yield np.hypot(y, x)
    (yy, yx), (_, xx) = _gradient(y), _gradient(x)
    yield from _eigenvalues(sigma * yy, sigma * yx, sigma * xx)
    # The gradient at half the scale, averaged over the scale.
    inner = max(0.5, sigma / 2)
    y, x = (inner * part for part in _gradient(_blur(grey, inner)))
    yield from _eigenvalues(_blur(y * y, sigma), _blur(y * x, sigma), _blur(x * x, sigma))


def _blur(values: Map, sigma: float) -> Map:
    blurred: Map = ndimage.gaussian_filter(values, sigma, mode="mirror", truncate=_TRUNCATE)
    return blurred


def _gradient(values: Map) -> tuple[Map, Map]:
    """Central differences along rows and columns; 0 along an axis of one pixel."""
    return _difference(values, 0), _difference(values, 1)


def _difference(values: Map, axis: int) -> Map:
    if values.shape[axis] == 1:
        return np.zeros_like(values)
    found: Map = np.gradient(values, axis=axis).astype(np.float32, copy=False)
    return found


def _eigenvalues(yy: Map, yx: Map, xx: Map) -> tuple[Map, Map]:
    """The larger and the smaller eigenvalue of symmetric 2x2 matrices."""
    mean = ((yy + xx) / 2).astype(np.float32, copy=False)
    half = np.hypot((yy - xx) / 2, yx).astype(np.float32, copy=False)
    return mean + half, mean - half

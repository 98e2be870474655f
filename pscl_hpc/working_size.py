"""The size at which networks and pixel classifiers see images.

Networks know structures at the size of those in their training. The ImageNet trunk and windows of some 128 pixels suit
micrographs of 500 to 800 pixels a side; the structures of an image with three times as many pixels are three times as
wide, and far fewer of them are in a window. The filters of pixel classifiers have fixed sizes in pixels, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.archive import IGNORE_INDEX

LARGEST_SIDE = 768
"""Images with a longer side are reduced to about this, in pixels."""
THINNEST = 4.0
"""But not so far that the finest annotated class has a smaller mean intercept, in pixels."""
BLUR = 0.5
"""Standard deviation of the blur before reducing, times sqrt(1 / scale^2 - 1) pixels: that of a pixel's own square,
widened to the square that a reduced pixel covers."""


def working_scale(rule: float | Literal["auto"], masks: Sequence[npt.NDArray[np.uint8]]) -> float:
    """The factor by which images are resized for the model.

    Args:
        rule: The factor itself; or ``auto``: 1, or less where the annotated images are large.
        masks: Of the annotated images, uint8 (h, w) each, 255 where not annotated.
    """
    if rule != "auto":
        return rule
    side = float(np.median([max(mask.shape) for mask in masks]))
    finest = min((value for mask in masks for value in mean_intercepts(mask).values()), default=math.inf)
    return round(min(1.0, max(LARGEST_SIDE / side, THINNEST / finest)), 3)


def note(rule: float | Literal["auto"], scale: float) -> list[str]:
    """A sentence for the user if ``auto`` reduces the images."""
    if rule != "auto" or scale == 1:
        return []
    return [
        f"the images are large: for the model they are reduced to {scale:.0%} of their sides (resize=1 keeps them)"
    ]


def mean_intercepts(mask: npt.NDArray[np.uint8]) -> dict[int, float]:
    """Mean length of the runs of each class along rows and columns, in pixels.

    Boundaries to pixels that are not annotated do not end a run; a class without any other boundary is left out.

    Args:
        mask: Class indices (h, w); 255 where not annotated.
    """
    ends: npt.NDArray[np.int64] = np.zeros(256, np.int64)
    for first, second in ((mask[:, :-1], mask[:, 1:]), (mask[:-1], mask[1:])):
        border = (first != second) & (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
        ends += np.bincount(first[border], minlength=256) + np.bincount(second[border], minlength=256)
    pixels = np.bincount(mask.reshape(-1), minlength=256)
    # Each run has two ends, and each pixel is in one run of a row and in one of a column.
    return {index: 4 * int(pixels[index]) / int(ends[index]) for index in map(int, np.flatnonzero(ends))}


def resized(images: Tensor, scale: float, smallest: int) -> Tensor:
    """Images (B, C, h, w) resized as training windows are: bilinearly, after a blur where they are reduced.

    Args:
        images: In 0..1.
        scale: The factor; 1 returns ``images``.
        smallest: Least side of the result, in pixels.
    """
    if scale == 1:
        return images
    sigma = BLUR * math.sqrt(max(0.0, scale**-2 - 1))
    if sigma:
        radius = math.ceil(3 * sigma)
        bell = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=images.device) / sigma) ** 2)
        kernel = (bell / bell.sum()).to(images.dtype).expand(images.shape[1], 1, 1, -1)
        padded = F.pad(images, (radius,) * 4, mode="replicate")
        images = F.conv2d(padded, kernel, groups=images.shape[1])
        images = F.conv2d(images, kernel.transpose(2, 3), groups=images.shape[1])
    # Whole numbers only: an ONNX graph has no other sizes.
    thousandths = round(1000 * scale)
    size = [(side * thousandths + 500) // 1000 for side in images.shape[2:]]
    if smallest > 1:
        size = [max(smallest, side) for side in size]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

"""Random windows of an image: flipped, rotated and magnified.

Flips and quarter turns copy pixels. Other angles and magnifications resample the image bilinearly and its mask by the
nearest pixel.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from pscl_hpc.archive import Archive, ImageRecord, Window
from pscl_hpc.archive.windows import draw_window, read_window
from pscl_hpc.models import TrunkConfig
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.working_size import BLUR

Pixel = TypeVar("Pixel", bound=np.generic)
Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
"""Image (C, h, w) in 0..1 and mask (h, w)."""


class Placement(NamedTuple):
    """Flip, rotation and magnification of a window."""

    flip: bool
    """Reverse the rows first."""
    turns: float
    """Quarter turns counter-clockwise after that; not a whole number where any angle is allowed."""
    scale: float
    """Window pixels per image pixel."""

    @classmethod
    def draw(cls, config: FinetuneConfig, rng: np.random.Generator, resize: float = 1.0) -> Placement:
        """A random placement for a network that sees images resized by this factor."""
        flip = bool(rng.integers(2)) and config.flip
        turns: float = int(rng.integers(4)) if config.rotate else 0
        scale, (low, high) = 1.0, config.scale
        if low != high:
            scale = math.exp(rng.uniform(math.log(low), math.log(high)))
        if config.any_angle:
            turns = rng.uniform(0, 4)
        return cls(flip, turns, scale * resize)

    @property
    def copies(self) -> bool:
        """Whether pixels are copied, not resampled."""
        return self.scale == 1 and float(self.turns).is_integer()


def cut_window(
    archive: Archive,
    record: ImageRecord,
    placement: Placement,
    size: tuple[int, int],
    trunk: TrunkConfig,
    rng: np.random.Generator,
    region: Window | None = None,
    pixel: tuple[int, int] | None = None,
) -> Pair:
    """A window of ``size`` (h, w) at a random position.

    An image smaller than the window is mirrored at its edges, with its mask. With a ``region`` the window contains it
    or, when it is smaller, has its centre so that it would lie inside without the rotation.

    Args:
        archive: Open archive.
        record: The image.
        placement: Flip, rotation and magnification.
        size: Height and width of the window in pixels.
        trunk: Decides channels and standardisation.
        rng: Draws the position.
        region: The part of the image whose annotation is used; by default all of it.
        pixel: Row and column of a pixel that is in the window, or would be without the rotation; the region does not
            limit the position then.
    """
    around = region if pixel is None else (*pixel, 1, 1)
    if placement.copies:
        turned = size if int(placement.turns) % 2 == 0 else size[::-1]
        window = draw_window(record, turned, rng, around)
        image, mask = _read(archive, record, window, turned, trunk, region)
        return _turn(image, placement), _turn(mask, placement)
    height, width = (min(math.ceil(side / placement.scale), 1 << 15) for side in size)
    top, left, rows, cols = draw_window(record, (height, width), rng, around)
    return _resample(archive, record, (top + rows / 2, left + cols / 2), placement, size, trunk, region)


def _read(
    archive: Archive,
    record: ImageRecord,
    window: Window,
    size: tuple[int, int],
    trunk: TrunkConfig,
    region: Window | None,
) -> Pair:
    return read_window(
        archive,
        record,
        window,
        size,
        channels=trunk.in_channels,
        standardise=trunk.standardise,
        region=region,
    )


def _turn(window: npt.NDArray[Pixel], placement: Placement) -> npt.NDArray[Pixel]:
    """A flipped and rotated copy of a window (..., h, w)."""
    flipped = window[..., ::-1, :] if placement.flip else window
    return np.ascontiguousarray(np.rot90(flipped, int(placement.turns), axes=(-2, -1)))


def _resample(
    archive: Archive,
    record: ImageRecord,
    centre: tuple[float, float],
    placement: Placement,
    size: tuple[int, int],
    trunk: TrunkConfig,
    region: Window | None,
) -> Pair:
    """The window around ``centre`` (y, x in pixels of the image)."""
    angle = placement.turns * math.pi / 2
    cos, sin = math.cos(angle), math.sin(angle)
    # Offsets of the window's pixels from the centre, in pixels of the image.
    v, u = np.meshgrid(*((np.arange(n) + 0.5 - n / 2) / placement.scale for n in size), indexing="ij")
    y, x = v * cos - u * sin, v * sin + u * cos
    y = centre[0] + (-y if placement.flip else y)
    x = centre[1] + x
    sigma = BLUR * math.sqrt(max(0.0, placement.scale**-2 - 1))
    margin = 2 + math.ceil(2 * sigma)
    top, left = max(0, math.floor(y.min()) - margin), max(0, math.floor(x.min()) - margin)
    bottom = min(record.height, math.ceil(y.max()) + margin)
    right = min(record.width, math.ceil(x.max()) + margin)
    window = (top, left, bottom - top, right - left)
    image, mask = _read(archive, record, window, window[2:], trunk, region)
    if sigma:
        from scipy.ndimage import gaussian_filter  # here, because it takes long to import

        image = gaussian_filter(image, (0, sigma, sigma), mode="mirror", truncate=2.0)
    grid = torch.from_numpy(np.stack((2 * (x - left) / window[3] - 1, 2 * (y - top) / window[2] - 1), -1))
    found = F.grid_sample(
        torch.from_numpy(image)[None], grid[None].float(), padding_mode="reflection", align_corners=False
    )
    labels = F.grid_sample(
        torch.from_numpy(mask)[None, None].float(),
        grid[None].float(),
        mode="nearest",
        padding_mode="reflection",
        align_corners=False,
    )
    return found[0].numpy(), labels[0, 0].round().to(torch.uint8).numpy()

"""Geometry of the second view in closed form, for a whole batch at once (docs/methods.md, PSCL-SimCLR).

View q has the geometry of the image. View k is flipped vertically, rotated counter-clockwise by ``turns`` times 90
degrees, cropped, and resized to the size of view q. Patches are mapped between views by arithmetic on a few integers
per image, without index tables or loops over images.

Shapes: B images, C channels or classes, h w pixels, H W patches of a feature map, T sampled patches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import ViewConfig


@dataclass(frozen=True)
class ViewGeometry:
    """How each view k is made from its image. All tensors are (B,); fractions are float64."""

    flip: Tensor
    """bool: whether rows are reversed, before the rotation."""
    turns: Tensor
    """int64, 0 to 3: counter-clockwise rotations by 90 degrees."""
    top: Tensor
    """First row of the crop, as a share of the height after the rotation."""
    left: Tensor
    """First column of the crop, as a share of the width after the rotation."""
    height: Tensor
    """Height of the crop, as a share of the height after the rotation."""
    width: Tensor
    """Width of the crop, as a share of the width after the rotation."""

    def to(self, device: torch.device) -> ViewGeometry:
        """The same geometry on ``device``."""
        return ViewGeometry(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, images: slice | list[int]) -> ViewGeometry:
        return ViewGeometry(*(getattr(self, f.name)[images] for f in fields(self)))


@dataclass(frozen=True)
class Crop:
    """The crop on a grid of pixels or patches: offsets and sizes in the rotated frame, int64 (B,)."""

    top: Tensor
    left: Tensor
    rows: Tensor
    cols: Tensor


def draw_geometry(batch: int, config: ViewConfig, generator: torch.Generator) -> ViewGeometry:
    """Random geometry for ``batch`` images, on the CPU.

    Flip with probability 1/2, uniform rotation, crop sizes 1 - U(0, crop), offsets uniform in the remaining range.
    """
    u = torch.rand((6, batch), generator=generator, dtype=torch.float64)
    height, width = 1 - config.crop * u[0], 1 - config.crop * u[1]
    flip = (u[4] < 0.5) if config.flip else torch.zeros(batch, dtype=torch.bool)
    turns = (4 * u[5]).long().clamp_max(3) if config.rotate else torch.zeros(batch, dtype=torch.long)
    return ViewGeometry(flip, turns, u[2] * (1 - height), u[3] * (1 - width), height, width)


def crop_on_grid(geometry: ViewGeometry, height: int, width: int) -> Crop:
    """The crop in whole patches of a grid: rows ``[int(top * H), int(top * H + share * H))``, at least one."""
    turned = geometry.turns % 2 == 1
    rows = torch.where(turned, width, height).double()
    cols = torch.where(turned, height, width).double()
    top, left = (geometry.top * rows).floor(), (geometry.left * cols).floor()
    bottom = (geometry.top * rows + geometry.height * rows).floor()
    right = (geometry.left * cols + geometry.width * cols).floor()
    return Crop(
        top.long(), left.long(), (bottom - top).clamp_min(1).long(), (right - left).clamp_min(1).long()
    )


def to_source(geometry: ViewGeometry, y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Map coordinates in the rotated, uncropped frame to coordinates in the image, both (B, ...), integer or
    fractional.

    Coordinates are of centres and begin at 0, so the formula is the same for pixels and patches.
    """
    turns = geometry.turns.view(-1, *(1,) * (y.ndim - 1))
    flip = geometry.flip.view_as(turns)
    last_row, last_col = height - 1, width - 1
    source_y = torch.where(
        turns == 0, y, torch.where(turns == 1, x, torch.where(turns == 2, last_row - y, last_row - x))
    )
    source_x = torch.where(
        turns == 0, x, torch.where(turns == 1, last_col - y, torch.where(turns == 2, last_col - x, y))
    )
    return torch.where(flip, last_row - source_y, source_y), source_x


def view_to_source(
    geometry: ViewGeometry, y: Tensor, x: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Map pixel coordinates of view k, (B, ...) float, to pixel coordinates of the image, as a bilinear resize does."""
    crop = crop_on_grid(geometry, height, width)
    lead = (-1, *(1,) * (y.ndim - 1))

    def turned(position: Tensor, size: int, kept: Tensor, first: Tensor) -> Tensor:
        kept = kept.view(lead).to(position)
        inside = ((position + 0.5) * kept / size - 0.5).clamp_min(0)
        return torch.minimum(inside, kept - 1) + first.view(lead).to(position)

    return to_source(
        geometry,
        turned(y, height, crop.rows, crop.top),
        turned(x, width, crop.cols, crop.left),
        height,
        width,
    )


def warp(images: Tensor, geometry: ViewGeometry) -> Tensor:
    """View k of ``images`` (B, C, h, w): flip, rotation, crop and bilinear resize in one step; same shape."""
    batch, _, height, width = images.shape
    axes = [torch.arange(side, device=images.device, dtype=torch.float32) for side in (height, width)]
    rows, cols = (grid.expand(batch, -1, -1) for grid in torch.meshgrid(*axes, indexing="ij"))
    y, x = view_to_source(geometry, rows, cols, height, width)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    return F.grid_sample(
        images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def paired_patches(geometry: ViewGeometry, height: int, width: int) -> Tensor:
    """Which patches of view k have a partner in view q: bool (B, H * W), row-major.

    The crop has fewer patches in view q than in view k. A nearest-neighbour resize assigns patch row ``i * H // rows``
    of view k to row ``i`` of the crop; the other rows of view k have no partner.
    """
    crop = crop_on_grid(geometry, height, width)
    rows = torch.arange(height, device=crop.rows.device)
    cols = torch.arange(width, device=crop.rows.device)
    _, row_ok = _kept(rows.view(1, -1), crop.rows, height)
    _, col_ok = _kept(cols.view(1, -1), crop.cols, width)
    return (row_ok[:, :, None] & col_ok[:, None, :]).flatten(1)


def partner_patches(geometry: ViewGeometry, patches: Tensor, height: int, width: int) -> Tensor:
    """Map patches of view k, int64 (B, T) row-major, to their partners in view q, int64 (B, T).

    Exact where :func:`paired_patches` is true. In square views whose side is a multiple of the stride of the feature
    map, the centres of a pair are less than one patch apart along each axis (tested); in other square views at most two
    patches, in views that are not square more, depending on the aspect ratio.
    """
    crop = crop_on_grid(geometry, height, width)
    i, _ = _kept(patches // width, crop.rows, height)
    j, _ = _kept(patches % width, crop.cols, width)
    y, x = to_source(geometry, i + crop.top[:, None], j + crop.left[:, None], height, width)
    return y * width + x


def class_shares(
    labels: Tensor, geometry: ViewGeometry, height: int, width: int, *, antialias: bool
) -> Tensor:
    """Share of each class in each patch of view k.

    Args:
        labels: One-hot labels of view k, (B, C, h, w) float.
        geometry: Of the same images.
        height: H of the feature map.
        width: W of the feature map.
        antialias: True averages over the patch and its surroundings with a triangular filter; False uses the two
            nearest pixels per axis, as the released code does (docs/methods.md), so that mixed patches may appear pure.

    Returns:
        (B, C, H, W); a patch without a partner in view q has the share of the nearest patch with one.
    """
    crop = crop_on_grid(geometry, height, width)
    rows = torch.arange(height, device=labels.device).view(1, -1)
    cols = torch.arange(width, device=labels.device).view(1, -1)
    i, _ = _kept(rows, crop.rows, height)
    j, _ = _kept(cols, crop.cols, width)
    down = _resize_weights(i, crop.rows, labels.shape[2], antialias).to(labels.dtype)
    across = _resize_weights(j, crop.cols, labels.shape[3], antialias).to(labels.dtype)
    # In 16 bits the shares of hundreds of patches would be equal.
    with torch.autocast(labels.device.type, enabled=False):
        return torch.einsum("bih,bchw,bjw->bcij", down, labels, across)


def _kept(patches: Tensor, kept: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Row (or column) of the crop for each patch along an axis, and whether it exists: inverse of ``i * size //
    kept``."""
    kept = kept.view(-1, *(1,) * (patches.ndim - 1))
    i = torch.div(patches * kept + size - 1, size, rounding_mode="floor")
    return torch.minimum(i, kept - 1), (i < kept) & (
        torch.div(i * size, kept, rounding_mode="floor") == patches
    )


def _resize_weights(index: Tensor, kept: Tensor, pixels: int, antialias: bool) -> Tensor:
    """Weights (B, patches, pixels) of a bilinear resize from ``pixels`` to ``kept``, at positions ``index``."""
    scale = (pixels / kept.double()).view(-1, 1, 1)
    centre = (index.double().unsqueeze(-1) + 0.5) * scale
    position = torch.arange(pixels, device=index.device, dtype=torch.float64)
    if antialias:
        weights = (1 - (position + 0.5 - centre).abs() / scale.clamp_min(1)).clamp_min(0)
        return weights / weights.sum(dim=-1, keepdim=True)
    return (1 - (position - (centre - 0.5).clamp(0, pixels - 1)).abs()).clamp_min(0)

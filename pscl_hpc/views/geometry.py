"""Geometry of the second view in closed form, for a whole batch at once (docs/methods.md, PSCL-SimCLR).

View q keeps the image's geometry. View k is flipped upside down, turned by 90 degrees ``turns`` times
counter-clockwise, cropped, and resized back to the size of view q. Everything below is arithmetic on a few
integers per image: there are no index tables and no loops over images.

Shape legend: B images, C channels or classes, h w pixels, H W patches of a feature map, T chosen patches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import ViewConfig


@dataclass(frozen=True)
class ViewGeometry:
    """How each view k was made from its image. All tensors are (B,); fractions are float64, as exact as their draw."""

    flip: Tensor
    """bool: rows reversed first."""
    turns: Tensor
    """int64, 0 to 3: quarter turns counter-clockwise after the flip."""
    top: Tensor
    """First kept row, as a share of the turned height."""
    left: Tensor
    """First kept column, as a share of the turned width."""
    height: Tensor
    """Kept share of the turned height."""
    width: Tensor
    """Kept share of the turned width."""

    def to(self, device: torch.device) -> ViewGeometry:
        """The same geometry on ``device``."""
        return ViewGeometry(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, images: slice | list[int]) -> ViewGeometry:
        return ViewGeometry(*(getattr(self, f.name)[images] for f in fields(self)))


@dataclass(frozen=True)
class Crop:
    """The crop on a grid of ``height x width`` (pixels or patches): offsets and sizes in the turned frame, int64 (B,)."""

    top: Tensor
    left: Tensor
    rows: Tensor
    cols: Tensor


def draw_geometry(batch: int, config: ViewConfig, generator: torch.Generator) -> ViewGeometry:
    """Random geometry for ``batch`` images, on the CPU.

    Flip with probability 1/2, a uniform quarter turn, kept shares 1 - U(0, crop), offsets uniform in what is left.
    """
    u = torch.rand((6, batch), generator=generator, dtype=torch.float64)
    height, width = 1 - config.crop * u[0], 1 - config.crop * u[1]
    flip = (u[4] < 0.5) if config.flip else torch.zeros(batch, dtype=torch.bool)
    turns = (4 * u[5]).long().clamp_max(3) if config.rotate else torch.zeros(batch, dtype=torch.long)
    return ViewGeometry(flip, turns, u[2] * (1 - height), u[3] * (1 - width), height, width)


def crop_on_grid(geometry: ViewGeometry, height: int, width: int) -> Crop:
    """The crop in whole patches of a grid: rows ``[int(top * H), int(top * H + share * H))``, never empty."""
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
    """Coordinates in the turned, uncropped frame to coordinates in the image, both (B, ...), whole or fractional.

    Coordinates count centres from 0, so the same formula serves pixels and patches.
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
    """Pixel coordinates of view k, (B, ...) float, to pixel coordinates of the image, by the bilinear resize's rule."""
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
    """View k of ``images`` (B, C, h, w): flip, turn, crop and bilinear resize in one pass, same shape."""
    batch, _, height, width = images.shape
    rows = (
        torch.arange(height, device=images.device, dtype=torch.float32)
        .view(1, -1, 1)
        .expand(batch, -1, width)
    )
    cols = (
        torch.arange(width, device=images.device, dtype=torch.float32)
        .view(1, 1, -1)
        .expand(batch, height, -1)
    )
    y, x = view_to_source(geometry, rows, cols, height, width)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    return F.grid_sample(
        images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def paired_patches(geometry: ViewGeometry, height: int, width: int) -> Tensor:
    """Which patches of view k have a partner in view q: bool (B, H * W), row-major.

    The kept part of view q has fewer patches than view k's grid. Resizing its index grid by nearest neighbour uses patch
    ``i * H // rows`` of view k for kept row ``i``; the others have no partner.
    """
    crop = crop_on_grid(geometry, height, width)
    rows = torch.arange(height, device=crop.rows.device)
    cols = torch.arange(width, device=crop.rows.device)
    _, row_ok = _kept(rows.view(1, -1), crop.rows, height)
    _, col_ok = _kept(cols.view(1, -1), crop.cols, width)
    return (row_ok[:, :, None] & col_ok[:, None, :]).flatten(1)


def partner_patches(geometry: ViewGeometry, patches: Tensor, height: int, width: int) -> Tensor:
    """Patches of view k, int64 (B, T) row-major, to their partners in view q, int64 (B, T).

    Exact where :func:`paired_patches` holds. In square views whose side is a multiple of the map's stride, the centres of
    a pair are less than one patch apart along each axis (tested); in square ones of another size up to two patches, in
    oblong ones the more the longer they are.
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
        antialias: True weighs the whole patch and its rim by a triangle; False takes the two nearest pixels per axis,
            which calls patches pure that are not (as the released code does, docs/methods.md).

    Returns:
        (B, C, H, W); patches without a partner in view q hold the share of the nearest patch that has one.
    """
    crop = crop_on_grid(geometry, height, width)
    rows = torch.arange(height, device=labels.device).view(1, -1)
    cols = torch.arange(width, device=labels.device).view(1, -1)
    i, _ = _kept(rows, crop.rows, height)
    j, _ = _kept(cols, crop.cols, width)
    down = _resize_weights(i, crop.rows, labels.shape[2], antialias).to(labels.dtype)
    across = _resize_weights(j, crop.cols, labels.shape[3], antialias).to(labels.dtype)
    # In 16 bits hundreds of patches would have one and the same share.
    with torch.autocast(labels.device.type, enabled=False):
        return torch.einsum("bih,bchw,bjw->bcij", down, labels, across)


def _kept(patches: Tensor, kept: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Kept row (or column) that uses each patch of an axis, and whether one does: inverse of ``i * size // kept``."""
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

"""PSCL without annotation: clusters of patches stand for classes. This project's own; see docs/methods.md.

Shape legend: B images, K clusters, h w pixels, H W patches of a map, P = H * W, n pixels that clusters are found by.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.archive import IGNORE_INDEX
from pscl_hpc.config import Count, NonNegative
from pscl_hpc.methods.base import METHODS, MethodOutput, PatchSample, Setting, Views
from pscl_hpc.methods.common.clustering import (
    Clusters,
    Moments,
    MovingMoments,
    clearest,
    nearest,
)
from pscl_hpc.methods.common.patches import gather_patches, patch_labels, patches_of
from pscl_hpc.methods.common.pscl import Pscl
from pscl_hpc.methods.common.sampling import choose_pure
from pscl_hpc.methods.common.settings import PatchConfig
from pscl_hpc.methods.common.texture import texture
from pscl_hpc.methods.pscl_simclr import in_batch_loss
from pscl_hpc.models import Features, Trunk
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import sum_over_ranks
from pscl_hpc.views import paired_patches

_WINDOWS = (5, 15)
"""Squares that the texture of a pixel is described by, in pixels."""
_DESCRIPTORS = 2 * len(_WINDOWS)
_PLACES = 16
"""Places per side of a window, for the means by place."""


class PsclClusteredConfig(PatchConfig):
    """PSCL with in-batch negatives and without annotation: clusters of patches stand for classes."""

    name: Literal["pscl-clustered"] = "pscl-clustered"
    display_name: ClassVar[str] = "PSCL-clustered"
    clusters: Annotated[int, Field(ge=2)] = 6
    """Number of clusters; about as many as there are phases that look different."""
    projection_weight: NonNegative = 0.25
    """Pixels are clustered by fixed descriptors of grey level and roughness and by their projections. This is the
    weight of the projections at the end of the run, to which it rises from 0; projections have length 1, descriptors
    about the same. 0: by descriptors alone."""
    confident: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of each cluster's pixels in an image that count as its own: those whose nearest centre is most clearly the
    nearest. The others are of unknown class."""
    patches_per_image: Count = 1024
    """Random pixels of each image by which the clusters are found and followed."""
    memory: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Share of the old value in the moving averages of the clusters, per step."""


@METHODS.register(PsclClusteredConfig)
class PsclClustered(Pscl):
    """PSCL-SimCLR whose annotation is a clustering of the pixels of view k.

    A pixel takes the cluster of the nearest centre, or none if its choice is among the less clear ones of its image. A
    patch of a coarser scale is of a cluster when nearly all of its pixels are. From each image the same number of patches
    of each cluster is drawn; a cluster that an image does not show gives none.

    Pixels are compared by fixed texture descriptors and by their projections of the finest scale. At the start the
    descriptors decide alone: what an untrained network projects means little, and a clustering by projections alone
    would be taught by itself and drift. The projections' part of the centres is followed from the start, as the mean
    over the members, and its weight rises over the run. From a projection the moving mean of its place in the window is
    subtracted: zero padding marks the rim of a window, and clusters would otherwise tell rim from middle.
    """

    config: PsclClusteredConfig
    progress: Tensor

    def __init__(self, trunk: Trunk, config: PsclClusteredConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        self.clusters = Clusters(config.clusters, _DESCRIPTORS + config.projection, config.memory)
        self.places = MovingMoments(_PLACES**2, config.projection, config.memory)
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))
        self.class_names = tuple(f"cluster {number + 1}" for number in range(config.clusters))
        self._staged: list[tuple[Moments, Moments]] = []

    def forward(self, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        """See :func:`in_batch_loss`; the clusters' moments are kept until :meth:`after_step`."""
        query, key = self.trunk(views.query), self.trunk(views.key)
        self._watch(views, key, draws)
        output = in_batch_loss(self, views, query, key, self.sample_patches(views, key, draws), measure)
        if measure:
            output.terms["clusters/largest"] = self.clusters.share.max()
            output.terms["clusters/smallest"] = self.clusters.share.min()
        return output

    @torch.no_grad()
    def sample_patches(self, views: Views, key: Features, draws: Draws) -> tuple[PatchSample, ...]:
        """Patches of each cluster in each image, at random among those that surely belong to it."""
        if not self.clusters.known:
            self._watch(views, key, draws)
        labels = self._pixel_labels(views, key)
        one_hot = F.one_hot(labels + 1, self.config.clusters + 1)[..., 1:].permute(0, 3, 1, 2).float()
        samples = []
        for scale, patch_map in enumerate(key.scales):
            height, width = patch_map.shape[2:]
            shares = F.adaptive_avg_pool2d(one_hot, (height, width)).flatten(2)
            count = self.config.templates_per_class * self.config.template_growth**scale
            paired = paired_patches(views.geometry, height, width)
            generators = draws.each("templates", range(len(shares)))
            chosen = choose_pure(shares, paired, count, self.config.purity, generators)
            each = chosen.shape[1] // self.config.clusters
            classes = torch.arange(self.config.clusters, device=chosen.device).repeat_interleave(each)
            in_patch = shares.gather(2, chosen.clamp_min(0).view(*shares.shape[:2], each)).flatten(1)
            samples.append(PatchSample(chosen, classes, torch.where(chosen >= 0, in_patch, 0.0)))
        return tuple(samples)

    def after_step(self, progress: float) -> None:
        """Let the clusters follow the step's images."""
        self.progress.fill_(progress)
        if not self._staged:
            return
        for moving, parts in zip((self.clusters, self.places), zip(*self._staged, strict=True), strict=True):
            sums = (torch.stack(part).sum(dim=0) for part in zip(*parts, strict=True))
            moving.follow(Moments(*(sum_over_ranks(part, self.process_group) for part in sums)))
        self.clusters.revive(self._scale)
        self._staged.clear()

    def sampling_terms(
        self, scale: int, views: Views, sample: PatchSample, height: int, width: int
    ) -> dict[str, Tensor]:
        """Patches per image and cluster, and how far clusters and annotated classes agree, where there are masks."""
        return {
            f"scale{scale}/templates": sample.valid.sum() / len(sample.valid),
            f"scale{scale}/purity": majority_purity(views, sample, height, width).nanmean(),
        }

    @property
    def _scale(self) -> Tensor:
        """Factor on each axis, whose square is its weight in a squared distance: (D,)."""
        scale = torch.ones_like(self.clusters.first[0])
        scale[_DESCRIPTORS:] = (self.config.projection_weight * self.progress).sqrt()
        return scale

    @torch.no_grad()
    def _watch(self, views: Views, key: Features, draws: Draws) -> None:
        """Start the clusters where there are none yet, and keep the moments of some pixels of the batch."""
        pixels = torch.stack(
            [
                torch.randint(
                    views.key[0, 0].numel(),
                    (self.config.patches_per_image,),
                    generator=generator,
                    device=views.key.device,
                )
                for generator in draws.each("clustering", range(len(views.key)))
            ]
        )
        described = _texture(views.key)
        described = described.gather(1, pixels.unsqueeze(2).expand(-1, -1, _DESCRIPTORS))
        projected = self._project(gather_patches(key.scales[-1], pixels))
        vectors = self._vectors(described, projected, self._place_means(key)[pixels]).flatten(0, 1)
        if not self.clusters.known:
            self.clusters.start(vectors, self._scale, self.process_group)
        if self.training:
            labels, _ = nearest(vectors, self.clusters.moments, self._scale)
            height, width = key.scales[-1].shape[2:]
            place = pixels // width * _PLACES // height * _PLACES + pixels % width * _PLACES // width
            self._staged.append(
                (
                    Moments.of(vectors, labels, self.config.clusters),
                    Moments.of(projected.flatten(0, 1), place.flatten(), _PLACES**2),
                )
            )

    def _pixel_labels(self, views: Views, key: Features) -> Tensor:
        """Cluster of each pixel of view k, int64 (B, h, w); -1 where it is not clear enough."""
        found, means = [], self._place_means(key)
        # One image at a time: the projections of all patches never exist at once.
        for described, patches in zip(_texture(views.key), patches_of(key.scales[-1]), strict=True):
            vectors = self._vectors(described, self._project(patches), means)
            label, margin = nearest(vectors, self.clusters.moments, self._scale)
            found.append(torch.where(clearest(label, margin, self.config.confident), label, -1))
        labels = torch.stack(found).view(-1, *views.key.shape[2:])
        # An image of one grey level lies at one point, which may be near a centre by chance.
        spread = views.key.float().mean(dim=1).std(dim=(1, 2), correction=0)
        return torch.where(spread.view(-1, 1, 1) > 1e-6, labels, -1)

    def _project(self, patches: Tensor) -> Tensor:
        """Patches of the finest map (..., C) as directions (..., D)."""
        head: nn.Module = self.patch_heads[-1]
        projected = head(patches)
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)

    def _vectors(self, described: Tensor, projected: Tensor, means: Tensor) -> Tensor:
        """What pixels are compared by, (..., 4 + D): descriptors, and directions from the mean of their place."""
        return torch.cat((described, F.normalize(projected - means.to(projected), dim=-1)), dim=-1)

    def _place_means(self, key: Features) -> Tensor:
        """Mean projection at each pixel of a window, (P, D)."""
        means = self.places.moments.centres.T.reshape(1, -1, _PLACES, _PLACES)
        return (
            F.interpolate(means, key.scales[-1].shape[2:], mode="bilinear", align_corners=False)[0]
            .flatten(1)
            .T
        )


def _texture(images: Tensor) -> Tensor:
    """Descriptors of each pixel, (B, P, 4)."""
    return texture(images, _WINDOWS).flatten(2).transpose(1, 2)


@torch.no_grad()
def majority_purity(views: Views, sample: PatchSample, height: int, width: int) -> Tensor:
    """Share of each image's sampled patches that show the class which is most frequent in their cluster, (B,).

    Patches whose mask is unknown do not count; NaN where none is known. Masks serve to measure, never to learn. A cluster
    of one patch is always pure: the figure is the more telling the more patches there are.
    """
    found = patch_labels(views, sample.key_patches.clamp_min(0), height, width)
    known = sample.valid & (found != IGNORE_INDEX)
    classes = int(torch.where(known, found, 0).max()) + 1 if found.numel() else 1
    clusters = int(sample.classes.max()) + 1
    pair = torch.where(known, sample.classes * classes + found, clusters * classes)
    counts = F.one_hot(pair, clusters * classes + 1).sum(dim=1)[:, :-1].view(-1, clusters, classes)
    hits = counts.amax(dim=2).sum(dim=1)
    return hits / torch.where(known.any(dim=1), known.sum(dim=1).float(), torch.nan)

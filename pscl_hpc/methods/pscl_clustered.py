"""PSCL without annotation: clusters of pixels replace the classes. A method of this project (docs/methods.md).

Shape legend: B images, K clusters, h w pixels, H W patches of a map, P = H * W, n pixels that are clustered.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.archive import IGNORE_INDEX
from pscl_hpc.config import Count, NonNegative
from pscl_hpc.methods.base import METHODS, MethodOutput, PatchSample, Setting, Views
from pscl_hpc.methods.common.clustering import Clusters, Moments, MovingMoments, clearest, nearest
from pscl_hpc.methods.common.momentum import at_least_float32
from pscl_hpc.methods.common.patches import gather_patches, patch_labels, patches_of, texture
from pscl_hpc.methods.common.pscl import Pscl
from pscl_hpc.methods.common.pscl_config import PatchConfig
from pscl_hpc.methods.common.sampling import choose_pure
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.methods.pscl_simclr import in_batch_embedding, in_batch_loss
from pscl_hpc.models import Features, Trunk
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import sum_over_ranks
from pscl_hpc.views import paired_patches

_WINDOWS = (5, 15)
"""Sides of the squares for the texture descriptors of a pixel, in pixels."""
_DESCRIPTORS = 2 * len(_WINDOWS)
_PLACES = 16
"""Grid cells per side of a window, for the mean projection by position."""


class PsclClusteredConfig(PatchConfig):
    """PSCL without annotation: clusters of pixels replace the classes, negatives from the batch."""

    name: Literal["pscl-clustered"] = "pscl-clustered"
    display_name: ClassVar[str] = "PSCL-clustered"
    clusters: Annotated[int, Field(ge=2)] = 6
    """Number of clusters; about the number of phases that look different."""
    projection_weight: NonNegative = 0.25
    """Weight of the projections in the clustering, next to fixed descriptors of grey level and roughness. It rises from
    0 to this value over the run. Projections have length 1, descriptors a similar scale. 0: descriptors alone."""
    confident: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of each cluster's pixels in an image that are used: those with the largest margin between the nearest and
    the second centre. The class of the others is unknown."""
    patches_per_image: Count = 1024
    """Random pixels of each image that update the clusters in each step."""
    memory: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Share of the old value in the moving averages of the clusters, per step."""


@METHODS.register(PsclClusteredConfig)
class PsclClustered(Pscl):
    """PSCL-SimCLR with a clustering of the pixels of view k in place of the annotation.

    A pixel belongs to the cluster with the nearest centre, or to none if its margin is small. A patch of a coarser
    scale belongs to a cluster if nearly all of its pixels do. The same number of patches is drawn from each cluster and
    image; a cluster that is absent from an image gives none.

    Pixels are compared by fixed texture descriptors and by their projections at the finest scale. At the start only the
    descriptors count: the projections of an untrained network carry little information, and clusters of projections
    alone would be trained by their own assignments and drift. Centres contain the mean projection from the start; its
    weight rises over the run. The moving mean of the projections at the same position in the window is subtracted from
    each projection: zero padding is visible near the border, and clusters would otherwise separate border and centre.
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

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """See :func:`in_batch_embedding`; also the moments of random pixels."""
        query, key = self.trunk(views.query), self.trunk(views.key)
        described = functools.cache(lambda: _texture(views.key))
        sums = draws.once("moments", lambda: self._observe(views, key, draws, described()))
        samples = draws.once("samples", lambda: self._sample(views, key, draws, described()))
        return replace(in_batch_embedding(self, views, query, key, samples, measure), sums=sums)

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """See :func:`in_batch_loss`. The moments of the batch are kept for :meth:`after_step`."""
        output = in_batch_loss(self, embedding, measure)
        if self.training:
            self._stage(embedding.sums)
        if measure:
            output.terms["clusters/largest"] = self.clusters.share.max()
            output.terms["clusters/smallest"] = self.clusters.share.min()
        return output

    @torch.no_grad()
    def survey(self, views: Views, draws: Draws) -> Tensor | None:
        """Vectors of random pixels, if the clusters are not initialised."""
        if self.clusters.known:
            return None
        vectors, _, _ = self._random_pixels(self.trunk(views.key), draws, _texture(views.key))
        return vectors.flatten(0, 1)

    def begin(self, found: Tensor) -> None:
        """Initialise the clusters."""
        self.clusters.start(found, self._scale, self.process_group)

    def sample_patches(self, views: Views, key: Features, draws: Draws) -> tuple[PatchSample, ...]:
        """Random patches of each cluster in each image, among those that belong to it with a large margin."""
        return self._sample(views, key, draws, _texture(views.key))

    @torch.no_grad()
    def _sample(
        self, views: Views, key: Features, draws: Draws, described: Tensor
    ) -> tuple[PatchSample, ...]:
        """:meth:`sample_patches`, given the descriptors of view k."""
        if not self.clusters.known:
            self._observe(views, key, draws, described)
        labels = self._pixel_labels(views, key, described)
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
        """Update the clusters from the images of the step."""
        self.progress.fill_(progress)
        if not self._staged:
            return
        for moving, parts in zip((self.clusters, self.places), zip(*self._staged, strict=True), strict=True):
            sums = (torch.stack(part).sum(dim=0) for part in zip(*parts, strict=True))
            moving.follow(Moments(*(sum_over_ranks(part, self.process_group) for part in sums)))
        self.clusters.revive(self._scale)
        self._staged.clear()

    def sample_purity(self, views: Views, sample: PatchSample, height: int, width: int) -> Tensor:
        """See :func:`majority_purity`."""
        return majority_purity(views, sample, height, width)

    def sampling_terms(self, scale: int, embedding: Embedding) -> dict[str, Tensor]:
        """Patches per image, and the agreement of clusters with annotated classes where masks exist."""
        valid = embedding.images[f"scale{scale}/groups"] >= 0
        return {
            f"scale{scale}/templates": valid.sum() / len(valid),
            f"scale{scale}/purity": embedding.images[f"scale{scale}/purity"].nanmean(),
        }

    @property
    def _scale(self) -> Tensor:
        """Factor on each axis, (D,): the square root of its weight in squared distances."""
        scale = torch.ones_like(self.clusters.first[0])
        scale[_DESCRIPTORS:] = (self.config.projection_weight * self.progress).sqrt()
        return scale

    @torch.no_grad()
    def _random_pixels(self, key: Features, draws: Draws, described: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (B, n, 4 + D) of random pixels of view k, their projections (B, n, D) and positions (B, n)."""
        pixels = torch.stack(
            [
                torch.randint(
                    described.shape[1],
                    (self.config.patches_per_image,),
                    generator=generator,
                    device=described.device,
                )
                for generator in draws.each("clustering", range(len(described)))
            ]
        )
        described = described.gather(1, pixels.unsqueeze(2).expand(-1, -1, _DESCRIPTORS))
        projected = self._project(gather_patches(key.scales[-1], pixels))
        return self._vectors(described, projected, self._place_means(key)[pixels]), projected, pixels

    @torch.no_grad()
    def _observe(self, views: Views, key: Features, draws: Draws, described: Tensor) -> dict[str, Tensor]:
        """The moments of random pixels by cluster and by place; initialises the clusters if needed."""
        by_image, projected, pixels = self._random_pixels(key, draws, described)
        vectors = by_image.flatten(0, 1)
        if not self.clusters.known:
            self.begin(vectors)
        if not self.training:
            return {}
        labels, _ = nearest(vectors, self.clusters.moments, self._scale)
        height, width = key.scales[-1].shape[2:]
        place = pixels // width * _PLACES // height * _PLACES + pixels % width * _PLACES // width
        moments = {
            "cluster": Moments.of(vectors, labels, self.config.clusters),
            "place": Moments.of(projected.flatten(0, 1), place.flatten(), _PLACES**2),
        }
        return {f"{of}/{name}": part for of, sums in moments.items() for name, part in sums._asdict().items()}

    def _stage(self, sums: Mapping[str, Tensor]) -> None:
        """Keep the moments of :meth:`_observe` until :meth:`after_step`."""
        clusters, places = (
            Moments(*(sums[f"{of}/{name}"] for name in Moments._fields)) for of in ("cluster", "place")
        )
        self._staged.append((clusters, places))

    def _pixel_labels(self, views: Views, key: Features, textures: Tensor) -> Tensor:
        """Cluster of each pixel of view k, int64 (B, h, w); -1 where the margin is small."""
        found, means = [], self._place_means(key)
        # One image at a time, to bound the memory for projections.
        for described, patches in zip(textures, patches_of(key.scales[-1]), strict=True):
            vectors = self._vectors(described, self._project(patches), means)
            label, margin = nearest(vectors, self.clusters.moments, self._scale)
            found.append(torch.where(clearest(label, margin, self.config.confident), label, -1))
        labels = torch.stack(found).view(-1, *views.key.shape[2:])
        # All pixels of an image of one grey level have the same vector, which may be near a centre by chance.
        spread = views.key.float().mean(dim=1).std(dim=(1, 2), correction=0)
        return torch.where(spread.view(-1, 1, 1) > 1e-6, labels, -1)

    def _project(self, patches: Tensor) -> Tensor:
        """Patches of the finest map (..., C) to projections (..., D) of length 1."""
        head: nn.Module = self.patch_heads[-1]
        return F.normalize(at_least_float32(head(patches)), dim=-1)

    def _vectors(self, described: Tensor, projected: Tensor, means: Tensor) -> Tensor:
        """Vectors for clustering, (..., 4 + D): descriptors, and projections relative to the mean of their position."""
        return torch.cat((described, F.normalize(projected - means.to(projected), dim=-1)), dim=-1)

    def _place_means(self, key: Features) -> Tensor:
        """Mean projection at each pixel of a window, (P, D)."""
        means = self.places.moments.centres.T.reshape(1, -1, _PLACES, _PLACES)
        height, width = key.scales[-1].shape[2:]
        means = F.interpolate(means, (height, width), mode="bilinear", align_corners=False)[0].flatten(1)
        # Once for all images of the batch, in their precision.
        return means.to(torch.promote_types(key.scales[-1].dtype, torch.float32)).T.contiguous()


def _texture(images: Tensor) -> Tensor:
    """Descriptors of each pixel, (B, P, 4)."""
    return texture(images, _WINDOWS).flatten(2).transpose(1, 2)


@torch.no_grad()
def majority_purity(views: Views, sample: PatchSample, height: int, width: int) -> Tensor:
    """Share of each image's sampled patches that show the most frequent class of their cluster, (B,).

    Patches with unknown mask do not count; NaN where no mask is known. A cluster of one patch is always pure, so the
    value means more with more patches. For the log only.
    """
    found = patch_labels(views, sample.key_patches.clamp_min(0), height, width)
    known = sample.valid & (found != IGNORE_INDEX)
    classes = int(torch.where(known, found, 0).max()) + 1 if found.numel() else 1
    clusters = int(sample.classes.max()) + 1
    pair = torch.where(known, sample.classes * classes + found, clusters * classes)
    counts = F.one_hot(pair, clusters * classes + 1).sum(dim=1)[:, :-1].view(-1, clusters, classes)
    hits = counts.amax(dim=2).sum(dim=1)
    return hits / torch.where(known.any(dim=1), known.sum(dim=1).float(), torch.nan)

"""IDEAL (Basak et al., ICASSP 2023, arXiv 2210.15075): dense contrast of the encoder's patches.

docs/methods.md states which parts are from the paper and which are inferred. Shape legend as in ``correspondence``; D
width of a projection.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pscl_hpc.config import Count, NonNegative, Positive
from pscl_hpc.methods.base import METHODS, Method, MethodConfig, MethodOutput, Setting, Views
from pscl_hpc.methods.common.correspondence import Matches, match_patches
from pscl_hpc.methods.common.momentum import MomentumConfig, MomentumEncoder, momentum_at
from pscl_hpc.methods.common.patches import gather_patches
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import GlobalHead, PatchHead, Trunk, TrunkMaps
from pscl_hpc.seeding import Draws
from pscl_kernels import patch_nt_xent, patch_similarity_stats


class IdealConfig(MethodConfig):
    """IDEAL: dense contrast of bottleneck patches, positives by correspondence (Basak et al., ICASSP 2023)."""

    name: Literal["ideal"] = "ideal"
    display_name: ClassVar[str] = "IDEAL"
    correspondence: Literal["geometric", "feature"] = "geometric"
    """Choice of the positive in view k. geometric: the patch that shows the same material; feature: the patch with the
    most similar encoder features."""
    patches_per_image: Annotated[int, Field(ge=0)] = 256
    """Patches of each image that are contrasted, drawn at random in each step; 0: all. All pairs of patches of
    different images are compared, so the cost grows with the square of this number."""
    momentum: MomentumConfig = MomentumConfig(start=0.99)
    """Update of the momentum encoder, which encodes view k without gradient."""
    temperature: Positive = 0.2
    """Temperature of the contrast."""
    global_weight: NonNegative = 0.0
    """Weight of an image-level NT-Xent that is added to the dense loss; 0 as in the paper's figure."""
    projection: Count = 128
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the heads, at most the width of the bottleneck."""

    def paired_stride(self, maps: TrunkMaps) -> int:
        """The stride of the bottleneck if patches are paired by geometry, else 0."""
        return maps.bottleneck.stride if self.correspondence == "geometric" else 0


@METHODS.register(IdealConfig)
class Ideal(Method):
    """Contrast of bottleneck patches of view q with their partners in view k, which the momentum encoder encodes.

    The head consists of 1x1 convolutions, so only the contrasted patches are projected. The negatives of a patch are
    the patches of *other images*, of both views and all ranks: patches of the same image may show the same phase and
    are neither positives nor negatives. The decoder is not trained.
    """

    config: IdealConfig

    def __init__(self, trunk: Trunk, config: IdealConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        channels = trunk.maps.bottleneck.channels
        self.patch_head = PatchHead(channels, hidden=config.hidden, projection=config.projection, groups=1)
        self.momentum_trunk = MomentumEncoder(trunk)
        self.momentum_patch_head = MomentumEncoder(self.patch_head)
        self.global_head: GlobalHead | None = None
        self.momentum_global_head: MomentumEncoder[GlobalHead] | None = None
        if config.global_weight:
            self.global_head = GlobalHead(channels, hidden=config.hidden, projection=config.projection)
            self.momentum_global_head = MomentumEncoder(self.global_head)

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """Projections of matched patches of both views, the image of each or -1, and projections of images."""
        query = self.trunk.encode(views.query)[-1]
        matches, keys = draws.once("keys", lambda: self._keys(views, query.detach(), draws))
        # The slot in the batch of all ranks is unique across ranks.
        images = torch.tensor(draws.slots[: len(query)], device=query.device).unsqueeze(1)
        found = {
            "q": self.patch_head(gather_patches(query, matches.query)),
            "groups": torch.where(matches.valid, images, -1),
        }
        if self.global_head is not None:
            found["image q"] = self.global_head(query)
        return Embedding({**found, **keys})

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """Dense loss, plus ``global_weight`` times the image-level one."""
        q, k, groups = (embedding.images[name].flatten(0, 1) for name in ("q", "k", "groups"))
        loss = self._contrast(q, k, groups)
        terms = {"patches/loss": loss.detach()}
        if "image q" in embedding.images:
            image_loss = self._contrast(embedding.images["image q"], embedding.images["image k"], None)
            loss = loss + self.config.global_weight * image_loss
            terms["image/loss"] = image_loss.detach()
        if measure:
            positive, negative = patch_similarity_stats(q.detach(), k, groups)
            terms |= {"patches/positive": positive, "patches/negative": negative}
        return MethodOutput(loss, terms)

    @torch.no_grad()
    def _keys(self, views: Views, query: Tensor, draws: Draws) -> tuple[Matches, dict[str, Tensor]]:
        """The contrasted pairs of patches, and the momentum projections of patches ``k`` and of images ``image k``."""
        key = self.momentum_trunk.module.encode(views.key)[-1]
        matches = self._draw(match_patches(self.config.correspondence, views.geometry, query, key), draws)
        keys = {"k": self.momentum_patch_head(gather_patches(key, matches.key))}
        if self.momentum_global_head is not None:
            keys["image k"] = self.momentum_global_head(key)
        return matches, keys

    def after_step(self, progress: float) -> None:
        """See :class:`Method`."""
        momentum = momentum_at(self.config.momentum, progress)
        self.momentum_trunk.follow(self.trunk, momentum)
        self.momentum_patch_head.follow(self.patch_head, momentum)
        if self.global_head is not None and self.momentum_global_head is not None:
            self.momentum_global_head.follow(self.global_head, momentum)

    def _draw(self, matches: Matches, draws: Draws) -> Matches:
        """Random pairs of each image, valid pairs first; the same number for every image."""
        count = self.config.patches_per_image
        if not 0 < count < matches.valid.shape[1]:
            return matches
        device = matches.valid.device
        noise = torch.stack(
            [
                torch.rand(matches.valid.shape[1], generator=generator, device=device)
                for generator in draws.each("patches", range(len(matches.valid)))
            ]
        )
        chosen = torch.where(matches.valid, noise, noise - 1).topk(count, dim=1).indices
        return Matches(*(part.gather(1, chosen) for part in matches))

    def _contrast(self, q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        return patch_nt_xent(
            q,
            k.to(q),
            groups,
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )

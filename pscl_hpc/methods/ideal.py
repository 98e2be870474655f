"""IDEAL: dense contrast of the encoder's patches, with positives by correspondence.

Basak et al., ICASSP 2023, arXiv 2210.15075. What is from the paper and what is inferred: docs/methods.md. Shape legend
as in ``correspondence``; D width of a projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pscl_hpc.config import IdealConfig, PretrainConfig
from pscl_hpc.methods.base import Method, MethodOutput, Setting, Views
from pscl_hpc.methods.correspondence import Matches, match_patches
from pscl_hpc.methods.momentum import MomentumEncoder, momentum_at
from pscl_hpc.methods.patches import gather_patches
from pscl_hpc.models import GlobalHead, PatchHead, UNet
from pscl_hpc.seeding import Draws
from pscl_kernels import patch_nt_xent, patch_similarity_stats


class Ideal(Method):
    """Patches of the bottleneck of view q against their partners in the momentum encoder's view k.

    The head is made of 1x1 convolutions. It acts on each patch alone, so that only contrasted patches are projected. A
    patch's negatives are the patches of *other images*, of both views and all ranks: patches of its own image may show the
    same phase and are left out. The decoder is not trained.

    Args:
        trunk: The U-Net; its encoder is trained.
        config: Method settings.
        backend: Backend of the contrast.
    """

    def __init__(self, trunk: UNet, config: IdealConfig, *, backend: str = "auto") -> None:
        super().__init__(trunk)
        self.config = config
        self.backend = backend
        channels = trunk.config.widths[-1]
        self.patch_head = PatchHead(channels, hidden=config.hidden, projection=config.projection, groups=1)
        self.momentum_trunk = MomentumEncoder(trunk)
        self.momentum_patch_head = MomentumEncoder(self.patch_head)
        self.global_head: GlobalHead | None = None
        self.momentum_global_head: MomentumEncoder[GlobalHead] | None = None
        if config.global_weight:
            self.global_head = GlobalHead(channels, hidden=config.hidden, projection=config.projection)
            self.momentum_global_head = MomentumEncoder(self.global_head)

    @classmethod
    def build(cls, trunk: UNet, config: PretrainConfig, setting: Setting) -> Ideal:
        """See :class:`Method`."""
        assert isinstance(config.method, IdealConfig)
        return cls(trunk, config.method, backend=config.runtime.kernels)

    def forward(self, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        """Dense loss, plus ``global_weight`` times the image-level one."""
        query = self.trunk.encode(views.query)[-1]
        with torch.no_grad():
            key = self.momentum_trunk.module.encode(views.key)[-1]
        matches = self._draw(match_patches(self.config.correspondence, views.geometry, query, key), draws)
        q = self.patch_head(gather_patches(query, matches.query)).flatten(0, 1)
        k = self.momentum_patch_head(gather_patches(key, matches.key)).flatten(0, 1)
        # An image's place in the batch of all ranks is a number that no image of another rank has.
        images = torch.tensor(draws.slots[: len(query)], device=query.device).unsqueeze(1)
        groups = torch.where(matches.valid, images, -1).flatten()
        loss = self._contrast(q, k, groups)
        terms = {"patches/loss": loss.detach()}
        if self.global_head is not None and self.momentum_global_head is not None:
            image_loss = self._contrast(self.global_head(query), self.momentum_global_head(key), None)
            loss = loss + self.config.global_weight * image_loss
            terms["image/loss"] = image_loss.detach()
        if measure:
            positive, negative = patch_similarity_stats(q.detach(), k, groups)
            terms |= {"patches/positive": positive, "patches/negative": negative}
        return MethodOutput(loss, terms)

    def after_step(self, progress: float) -> None:
        """Let the momentum encoders follow."""
        momentum = momentum_at(self.config.momentum, progress)
        self.momentum_trunk.follow(self.trunk, momentum)
        self.momentum_patch_head.follow(self.patch_head, momentum)
        if self.global_head is not None and self.momentum_global_head is not None:
            self.momentum_global_head.follow(self.global_head, momentum)

    def _draw(self, matches: Matches, draws: Draws) -> Matches:
        """The pairs of each image that are contrasted, those that exist first; as many for every image."""
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

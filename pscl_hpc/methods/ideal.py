"""IDEAL: dense contrast of the encoder's cells, with positives by correspondence.

Basak et al., ICASSP 2023, arXiv 2210.15075. What is from the paper and what is inferred: docs/methods.md. Shape legend
as in ``correspondence``; D width of a projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pscl_hpc.config import IdealConfig, PretrainConfig
from pscl_hpc.methods.base import Method, MethodOutput, Setting, Views
from pscl_hpc.methods.cells import gather_cells
from pscl_hpc.methods.correspondence import Matches, match_cells
from pscl_hpc.methods.momentum import MomentumEncoder, momentum_at
from pscl_hpc.models import CellHead, GlobalHead, UNet
from pscl_hpc.seeding import Draws
from pscl_kernels import patch_nt_xent, patch_similarity_stats


class Ideal(Method):
    """Cells of the bottleneck of view q against their partners in the momentum encoder's view k.

    The head is made of 1x1 convolutions. It acts on each cell alone, so that only contrasted cells are projected. A
    cell's negatives are the cells of *other images*, of both views and all ranks: cells of its own image may show the
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
        self.cell_head = CellHead(channels, hidden=config.hidden, projection=config.projection, groups=1)
        self.momentum_trunk = MomentumEncoder(trunk)
        self.momentum_cell_head = MomentumEncoder(self.cell_head)
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
        matches = self._draw(match_cells(self.config.correspondence, views.geometry, query, key), draws)
        q = self.cell_head(gather_cells(query, matches.query)).flatten(0, 1)
        k = self.momentum_cell_head(gather_cells(key, matches.key)).flatten(0, 1)
        # An image's place in the batch of all ranks is a number that no image of another rank has.
        images = torch.tensor(draws.slots[: len(query)], device=query.device).unsqueeze(1)
        groups = torch.where(matches.valid, images, -1).flatten()
        loss = self._contrast(q, k, groups)
        terms = {"cells/loss": loss.detach()}
        if self.global_head is not None and self.momentum_global_head is not None:
            image_loss = self._contrast(self.global_head(query), self.momentum_global_head(key), None)
            loss = loss + self.config.global_weight * image_loss
            terms["image/loss"] = image_loss.detach()
        if measure:
            positive, negative = patch_similarity_stats(q.detach(), k, groups)
            terms |= {"cells/positive": positive, "cells/negative": negative}
        return MethodOutput(loss, terms)

    def after_step(self, progress: float) -> None:
        """Let the momentum encoders follow."""
        momentum = momentum_at(self.config.momentum, progress)
        self.momentum_trunk.follow(self.trunk, momentum)
        self.momentum_cell_head.follow(self.cell_head, momentum)
        if self.global_head is not None and self.momentum_global_head is not None:
            self.momentum_global_head.follow(self.global_head, momentum)

    def _draw(self, matches: Matches, draws: Draws) -> Matches:
        """The pairs of each image that are contrasted, those that exist first; as many for every image."""
        count = self.config.cells_per_image
        if not 0 < count < matches.valid.shape[1]:
            return matches
        device = matches.valid.device
        noise = torch.stack(
            [
                torch.rand(matches.valid.shape[1], generator=generator, device=device)
                for generator in draws.each("cells", range(len(matches.valid)))
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

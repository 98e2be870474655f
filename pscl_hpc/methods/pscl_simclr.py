"""PSCL-SimCLR: image contrast on the bottleneck, patch contrast of sampled cells at every decoder scale.

Sci. Rep. 2025, doi 10.1038/s41598-025-32855-5; spec sections 3, 4 and 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pscl_hpc.config import PsclSimclrConfig
from pscl_hpc.methods.base import MethodOutput, Views
from pscl_hpc.methods.cells import gather_cells
from pscl_hpc.methods.pscl import Pscl
from pscl_hpc.models import UNet
from pscl_hpc.seeding import Draws
from pscl_hpc.views import partner_cells
from pscl_kernels import patch_nt_xent, patch_similarity_stats


class PsclSimclr(Pscl):
    """PSCL with negatives from the batch. Arguments as of :class:`Pscl`."""

    def __init__(
        self,
        trunk: UNet,
        config: PsclSimclrConfig,
        *,
        classes: int,
        ignored: tuple[int, ...] = (),
        backend: str = "auto",
    ) -> None:
        super().__init__(trunk, config, classes=classes, ignored=ignored, backend=backend)
        self.config = config

    def forward(self, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        """``(1 - r) * image loss + r * mean over scales of the patch loss`` with r = ``patch_weight``."""
        query, key = self.trunk(views.query), self.trunk(views.key)
        image_loss = self._contrast(
            self.global_head(query.bottleneck), self.global_head(key.bottleneck), None
        )
        terms = {"image/loss": image_loss.detach()}
        patch_loss = torch.zeros_like(image_loss)
        for scale, sample in enumerate(self.sample_cells(views, key, draws)):
            height, width = key.scales[scale].shape[2:]
            key_cells = sample.key_cells.clamp_min(0)
            query_cells = partner_cells(views.geometry, key_cells, height, width)
            head = self.cell_heads[scale]
            q = head(gather_cells(query.scales[scale], query_cells)).flatten(0, 1)
            k = head(gather_cells(key.scales[scale], key_cells)).flatten(0, 1)
            groups = sample.groups.flatten()
            loss = self._contrast(q, k, groups)
            patch_loss = patch_loss + self.scale_weights[scale] * loss / len(self.scale_weights)
            terms[f"scale{scale}/loss"] = loss.detach()
            if measure:
                positive, negative = patch_similarity_stats(q.detach(), k.detach(), groups)
                terms |= {f"scale{scale}/positive": positive, f"scale{scale}/negative": negative}
                terms |= self.sampling_terms(scale, views, sample, height, width)
        ratio = self.config.patch_weight
        return MethodOutput((1 - ratio) * image_loss + ratio * patch_loss, terms)

    def _contrast(self, q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        return patch_nt_xent(
            q,
            k,
            groups,
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )

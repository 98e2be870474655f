"""SimCLR (Chen et al. 2020): NT-Xent of the pooled bottleneck, on the same trunk and views as every other method."""

from __future__ import annotations

import torch

from pscl_hpc.config import SimclrConfig
from pscl_hpc.methods.base import Method, MethodOutput, Views
from pscl_hpc.models import GlobalHead, UNet
from pscl_kernels import patch_nt_xent


class Simclr(Method):
    """Image-level contrast alone."""

    def __init__(self, trunk: UNet, config: SimclrConfig, *, backend: str = "auto") -> None:
        super().__init__(trunk)
        self.config = config
        self.backend = backend
        self.global_head = GlobalHead(
            trunk.config.widths[-1], hidden=config.hidden, projection=config.projection
        )

    def forward(self, views: Views, generator: torch.Generator, measure: bool = False) -> MethodOutput:
        """NT-Xent over the batch; each image's positive is its other view."""
        q = self.global_head(self.trunk(views.query).bottleneck)
        k = self.global_head(self.trunk(views.key).bottleneck)
        loss = patch_nt_xent(q, k, temperature=self.config.temperature, backend=self.backend)
        return MethodOutput(loss, {"image/loss": loss.detach()})

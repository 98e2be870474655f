"""SimCLR (Chen et al. 2020): NT-Xent of the pooled bottleneck, on the same trunk and views as every other method."""

from __future__ import annotations

from pscl_hpc.config import PretrainConfig, SimclrConfig
from pscl_hpc.methods.base import Method, MethodOutput, Setting, Views
from pscl_hpc.models import GlobalHead, UNet
from pscl_hpc.seeding import Draws
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

    @classmethod
    def build(cls, trunk: UNet, config: PretrainConfig, setting: Setting) -> Simclr:
        """See :class:`Method`."""
        assert isinstance(config.method, SimclrConfig)
        return cls(trunk, config.method, backend=config.runtime.kernels)

    def forward(self, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        """NT-Xent over the batch; each image's positive is its other view."""
        q = self.global_head(self.trunk.encode(views.query)[-1])
        k = self.global_head(self.trunk.encode(views.key)[-1])
        loss = patch_nt_xent(
            q,
            k,
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )
        return MethodOutput(loss, {"image/loss": loss.detach()})

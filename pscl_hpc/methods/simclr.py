"""SimCLR (Chen et al., ICML 2020, arXiv 2002.05709): NT-Xent of the pooled bottleneck."""

from __future__ import annotations

from typing import ClassVar, Literal

from pscl_hpc.config import Count, Positive
from pscl_hpc.methods.base import METHODS, Method, MethodConfig, MethodOutput, Setting, Views
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import GlobalHead, Trunk
from pscl_hpc.seeding import Draws
from pscl_kernels import patch_nt_xent


class SimclrConfig(MethodConfig):
    """SimCLR on the pooled bottleneck: the image loss of PSCL alone (Chen et al., ICML 2020)."""

    name: Literal["simclr"] = "simclr"
    display_name: ClassVar[str] = "SimCLR"
    temperature: Positive = 0.5
    """Temperature of NT-Xent."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the head, at most the width of the bottleneck."""


@METHODS.register(SimclrConfig)
class Simclr(Method):
    """Image-level contrast alone. The decoder is not trained."""

    config: SimclrConfig

    def __init__(self, trunk: Trunk, config: SimclrConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        self.global_head = GlobalHead(
            trunk.maps.bottleneck.channels, hidden=config.hidden, projection=config.projection
        )

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """Projections of both views."""
        q = self.global_head(self.trunk.encode(views.query)[-1])
        return Embedding({"q": q, "k": self.global_head(self.trunk.encode(views.key)[-1])})

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """NT-Xent over the batch. The positive of an image is its other view."""
        loss = patch_nt_xent(
            embedding.images["q"],
            embedding.images["k"],
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )
        return MethodOutput(loss, {"image/loss": loss.detach()})

"""What the variants of patch-sampled contrastive learning share: heads and the sampling of cells."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from torch import Tensor, nn

from pscl_hpc.config import AnnotatedPatchConfig, PatchConfig, PretrainConfig
from pscl_hpc.methods.base import CellSample, Method, Setting, Views
from pscl_hpc.methods.cells import CellSampler, cell_purity
from pscl_hpc.models import CellHead, Features, GlobalHead, UNet
from pscl_hpc.seeding import Draws


class Pscl(Method):
    """Base of all variants.

    Args:
        trunk: The U-Net.
        config: Method settings.
        backend: Backend of the contrastive operations.
    """

    config: PatchConfig

    def __init__(self, trunk: UNet, config: PatchConfig, *, backend: str = "auto") -> None:
        super().__init__(trunk)
        self.config = config
        self.backend = backend
        self.global_head = GlobalHead(
            trunk.config.widths[-1], hidden=config.hidden, projection=config.projection
        )
        self.cell_heads = nn.ModuleList(
            CellHead(width, hidden=config.hidden, projection=config.projection, groups=config.head_groups)
            for width in trunk.scale_widths
        )
        self.scale_weights = config.scale_weights or (1.0,) * len(self.cell_heads)

    @abstractmethod
    def sampling_terms(
        self, scale: int, views: Views, sample: CellSample, height: int, width: int
    ) -> dict[str, Tensor]:
        """What the log tells of the cells of one scale, a grid of ``height`` x ``width``."""


class AnnotatedPscl(Pscl):
    """Base of PSCL-SimCLR and PSCL-MoCo: classes come from annotated references.

    Args:
        trunk: The U-Net.
        config: Method settings.
        classes: Number of classes of the references' collection.
        ignored: Classes whose annotation is not to be trusted; they give no templates.
        backend: Backend of the contrastive operations.
    """

    def __init__(
        self,
        trunk: UNet,
        config: AnnotatedPatchConfig,
        *,
        classes: int,
        ignored: tuple[int, ...] = (),
        backend: str = "auto",
    ) -> None:
        super().__init__(trunk, config, backend=backend)
        self.sampler = CellSampler(config, classes=classes, ignored=ignored)
        self.classes = classes

    @classmethod
    def build(cls, trunk: UNet, config: PretrainConfig, setting: Setting) -> Self:
        """See :class:`Method`. ``setting.annotated`` is needed."""
        assert isinstance(config.method, AnnotatedPatchConfig)
        if setting.annotated is None:
            raise ValueError(f"{config.method.name} needs the collection of its references")
        return cls(
            trunk,
            config.method,
            classes=len(setting.annotated.classes),
            ignored=setting.annotated.ignore_classes,
            backend=config.runtime.kernels,
        )

    def sample_cells(self, views: Views, key: Features, draws: Draws) -> tuple[CellSample, ...]:
        """See :class:`CellSampler`."""
        return self.sampler(views, key, self.cell_heads, draws)

    def sampling_terms(
        self, scale: int, views: Views, sample: CellSample, height: int, width: int
    ) -> dict[str, Tensor]:
        """Templates per reference, and purity of the other images."""
        return {
            f"scale{scale}/templates": sample.valid[: views.references].sum() / views.references,
            f"scale{scale}/purity": cell_purity(views, sample, height, width)[views.references :].nanmean(),
        }

"""What the variants of patch-sampled contrastive learning share: heads and the sampling of patches."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from torch import Tensor, nn

from pscl_hpc.config import AnnotatedPatchConfig, PatchConfig, PretrainConfig
from pscl_hpc.methods.base import Method, PatchSample, Setting, Views
from pscl_hpc.methods.patches import PatchSampler, patch_purity
from pscl_hpc.models import Features, GlobalHead, PatchHead, UNet
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
        self.patch_heads = nn.ModuleList(
            PatchHead(width, hidden=config.hidden, projection=config.projection, groups=config.head_groups)
            for width in trunk.scale_widths
        )
        self.scale_weights = config.scale_weights or (1.0,) * len(self.patch_heads)

    @abstractmethod
    def sampling_terms(
        self, scale: int, views: Views, sample: PatchSample, height: int, width: int
    ) -> dict[str, Tensor]:
        """What the log tells of the patches of one scale, a grid of ``height`` x ``width``."""


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
        self.sampler = PatchSampler(config, classes=classes, ignored=ignored)
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

    def sample_patches(self, views: Views, key: Features, draws: Draws) -> tuple[PatchSample, ...]:
        """See :class:`PatchSampler`."""
        return self.sampler(views, key, self.patch_heads, draws)

    def sampling_terms(
        self, scale: int, views: Views, sample: PatchSample, height: int, width: int
    ) -> dict[str, Tensor]:
        """Templates per reference, and purity of the other images."""
        return {
            f"scale{scale}/templates": sample.valid[: views.references].sum() / views.references,
            f"scale{scale}/purity": patch_purity(views, sample, height, width)[views.references :].nanmean(),
        }

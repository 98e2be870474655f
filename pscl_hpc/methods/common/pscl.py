"""Base classes of the PSCL variants: heads and the sampling of patches."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from pscl_hpc.methods.base import Method, PatchSample, Setting, Views
from pscl_hpc.methods.common.patches import patch_purity
from pscl_hpc.methods.common.pscl_config import AnnotatedPatchConfig, PatchConfig
from pscl_hpc.methods.common.sampling import PatchSampler
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import Features, GlobalHead, PatchHead, Trunk
from pscl_hpc.seeding import Draws


class Pscl(Method):
    """Base of all variants: an image head, and a patch head for each decoder map."""

    config: PatchConfig

    def __init__(self, trunk: Trunk, config: PatchConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        self.global_head = GlobalHead(
            trunk.maps.bottleneck.channels, hidden=config.hidden, projection=config.projection
        )
        self.patch_heads = nn.ModuleList(
            PatchHead(channels, hidden=config.hidden, projection=config.projection, groups=config.head_groups)
            for channels, _ in trunk.maps.scales
        )
        self.scale_weights = config.scale_weights or (1.0,) * len(self.patch_heads)

    @abstractmethod
    def sample_purity(self, views: Views, sample: PatchSample, height: int, width: int) -> Tensor:
        """Share of each image's sampled patches that show one class, (B,); NaN where no mask is known.

        The scale is a grid of ``height`` x ``width`` patches.
        """

    @abstractmethod
    def sampling_terms(self, scale: int, embedding: Embedding) -> dict[str, Tensor]:
        """Logged terms for the patches of one scale, from its entries ``groups`` and ``purity``."""


class AnnotatedPscl(Pscl):
    """Base of PSCL-SimCLR and PSCL-MoCo: classes come from annotated references.

    Raises:
        ValueError: the setting has no annotated collection.
    """

    config: AnnotatedPatchConfig

    def __init__(self, trunk: Trunk, config: AnnotatedPatchConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        if setting.annotated is None:
            raise ValueError(f"{config.name} needs the collection of its references")
        self.classes = len(setting.annotated.classes)
        self.sampler = PatchSampler(config, classes=self.classes, ignored=setting.annotated.ignore_classes)

    def sample_patches(self, views: Views, key: Features, draws: Draws) -> tuple[PatchSample, ...]:
        """See :class:`PatchSampler`."""
        return self.sampler(views, key, self.patch_heads, draws)

    def sample_purity(self, views: Views, sample: PatchSample, height: int, width: int) -> Tensor:
        """See :func:`patch_purity`."""
        return patch_purity(views, sample, height, width)

    def sampling_terms(self, scale: int, embedding: Embedding) -> dict[str, Tensor]:
        """Templates per reference, and purity of the patches of the other images."""
        count = embedding.references
        valid = embedding.images[f"scale{scale}/groups"][:count] >= 0
        return {
            f"scale{scale}/templates": valid.sum() / count,
            f"scale{scale}/purity": embedding.images[f"scale{scale}/purity"][count:].nanmean(),
        }

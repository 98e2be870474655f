"""Settings that the variants of patch-sampled contrastive learning share."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pscl_hpc.config import Count, Fraction, NonNegative, Positive
from pscl_hpc.methods.base import MethodConfig, ReferencedMethodConfig
from pscl_hpc.models import TrunkMaps


class PatchConfig(MethodConfig):
    """What all variants have: number of patches, heads, weights of the losses (docs/methods.md, PSCL-SimCLR)."""

    templates_per_class: Count = 4
    """Template patches per class at the coarsest scale."""
    template_growth: Count = 2
    """Each finer scale has this many times more template patches."""
    purity: Annotated[float, Field(gt=0.5, le=1.0)] = 0.95
    """A patch can be a template of a class when at least this share of it has that class. Classes with fewer such
    patches have fewer templates, absent classes none."""
    temperature: Positive = 0.5
    """Temperature of both contrastive losses."""
    patch_weight: Fraction = 0.7
    """Weight of the patch loss; the image loss has the rest."""
    scale_weights: tuple[NonNegative, ...] = ()
    """Weight of each scale's loss from coarse to fine, before their mean is taken; all 1 when empty."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the heads, at most the width of their input."""
    head_groups: Count = 4
    """Groups of the 1x1 convolutions in the patch heads."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.projection % self.head_groups:
            raise ValueError(
                f"projection ({self.projection}) must be a multiple of head_groups ({self.head_groups})"
            )
        return self

    def check(self, maps: TrunkMaps) -> None:
        """Raise ValueError where weights or heads do not fit the trunk's decoder."""
        super().check(maps)
        if self.scale_weights and len(self.scale_weights) != len(maps.scales):
            raise ValueError(f"method.scale_weights needs {len(maps.scales)} values, one per scale")
        for channels, _ in maps.scales:
            for key, value in (
                ("a decoder map of model", channels),
                ("method.hidden", min(self.hidden, channels)),
            ):
                if value % self.head_groups:
                    raise ValueError(
                        f"{key} has {value} channels, which is not a multiple of method.head_groups "
                        f"({self.head_groups}); choose multiples of it, or set method.head_groups=1"
                    )

    def paired_stride(self, maps: TrunkMaps) -> int:
        """The stride of the coarsest decoder map."""
        return maps.scales[0].stride


class AnnotatedPatchConfig(PatchConfig, ReferencedMethodConfig):
    """What the variants with a reference have: choice of templates, matching (docs/methods.md, PSCL-SimCLR)."""

    template_rule: Literal["pure", "released"] = "pure"
    """pure: random patches of sufficient ``purity``. released: the highest label values with exclusion by subtraction,
    overflowing into mixed and arbitrary patches of a rare class, as the released code does; ``purity`` is not used."""
    matching: Literal["cosine", "dot"] = "cosine"
    """Similarity by which patches are matched to templates. dot: as released, not normalised."""
    exclusion: Literal["strict", "released"] = "strict"
    """strict: a patch is taken once. released: the largest similarity is subtracted from a taken patch, which lets it be
    taken again where similarities are negative."""
    texture: Fraction = 0.0
    """Share of fixed texture descriptors in the similarity that patches are matched by: ``texture`` times the cosine of
    the descriptors plus ``1 - texture`` times that of the projections. 0: projections alone, as in the paper; they say
    next to nothing while the network is young. Needs ``matching: cosine``."""
    antialias: bool = True
    """Labels are averaged over the whole patch. false: bilinear samples, as torchvision before 0.17."""

    @model_validator(mode="after")
    def _texture_has_no_length(self) -> Self:
        if self.texture and self.matching == "dot":
            raise ValueError(
                "texture needs matching: cosine, because descriptors and projections are directions"
            )
        return self

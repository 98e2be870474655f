"""Settings of the PSCL variants."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pscl_hpc.config import Count, Fraction, NonNegative, Positive
from pscl_hpc.methods.base import MethodConfig, ReferencedMethodConfig
from pscl_hpc.models import TrunkMaps


class PatchConfig(MethodConfig):
    """Settings of all variants: number of patches, heads, weights of the losses (docs/methods.md, PSCL-SimCLR)."""

    templates_per_class: Count = 4
    """Template patches per class at the coarsest scale."""
    template_growth: Count = 2
    """Each finer scale has this many times more template patches."""
    purity: Annotated[float, Field(gt=0.5, le=1.0)] = 0.95
    """Minimum share of a class in its template patches. A class with fewer such patches has fewer templates, an absent
    class none."""
    temperature: Positive = 0.5
    """Temperature of both contrastive losses."""
    patch_weight: Fraction = 0.7
    """Weight of the patch loss; the image loss has ``1 - patch_weight``."""
    scale_weights: tuple[NonNegative, ...] = ()
    """Weights of the scales in the patch loss, coarse to fine, before their mean is taken; empty: all 1."""
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
        """Raise ValueError if weights or heads do not fit the decoder of the trunk."""
        super().check(maps)
        if self.scale_weights and len(self.scale_weights) != len(maps.scales):
            raise ValueError(f"method.scale_weights needs {len(maps.scales)} values, one per decoder scale")
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
    """Settings of the variants with references: choice of templates, matching (docs/methods.md, PSCL-SimCLR)."""

    template_rule: Literal["pure", "released"] = "pure"
    """pure: random patches with at least ``purity``. released: as in the released code, the highest label values with
    exclusion by subtraction; a rare class also takes mixed and arbitrary patches, and ``purity`` is not used."""
    matching: Literal["cosine", "dot"] = "cosine"
    """Similarity of patches and templates. dot: not normalised, as released."""
    exclusion: Literal["strict", "released"] = "strict"
    """strict: a patch is taken at most once. released: the largest similarity is subtracted from a taken patch, so that
    it can be taken again where similarities are negative."""
    texture: Fraction = 0.0
    """Share of fixed texture descriptors in the similarity of patches and templates: ``texture`` times the cosine of
    the descriptors plus ``1 - texture`` times the cosine of the projections. 0: projections alone, as in the paper;
    early in training they carry little information. Needs ``matching: cosine``."""
    antialias: bool = True
    """Average labels over the whole patch. false: bilinear samples, as in torchvision before 0.17."""

    @model_validator(mode="after")
    def _texture_has_no_length(self) -> Self:
        if self.texture and self.matching == "dot":
            raise ValueError("texture needs matching: cosine; set matching=cosine or texture=0")
        return self

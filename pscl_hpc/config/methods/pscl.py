"""Patch-sampled contrastive learning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pscl_hpc.config.common import Count, Fraction, NonNegative, Positive
from pscl_hpc.config.methods.base import ReferencedMethod


class PatchConfig(ReferencedMethod):
    """What all variants have: sampling of cells, heads, weights of the losses (spec sections 2 and 3)."""

    templates_per_class: Count = 4
    """Template cells per class at the coarsest scale."""
    template_growth: Count = 2
    """Each finer scale has this many times more template cells."""
    purity: Annotated[float, Field(gt=0.5, le=1.0)] = 0.95
    """A cell can be a template of a class when at least this share of it has that class. Classes with fewer such
    cells have fewer templates, absent classes none. Not used by ``template_rule: released``."""
    template_rule: Literal["pure", "released"] = "pure"
    """pure: random cells among those of sufficient purity. released: the highest label values with exclusion by
    subtraction, overflowing into mixed and arbitrary cells of a rare class, as the released code does."""
    matching: Literal["cosine", "dot"] = "cosine"
    """Similarity by which cells are matched to templates. dot: as released, not normalised."""
    exclusion: Literal["strict", "released"] = "strict"
    """strict: a cell is taken once. released: the largest similarity is subtracted from a taken cell, which lets it be
    taken again where similarities are negative."""
    antialias: bool = True
    """Labels are averaged over the whole cell. false: bilinear samples, as torchvision before 0.17."""
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

    def check(self, *, scales: int) -> None:
        """Raise ValueError where no annotated image is named or the weights do not fit the scales."""
        super().check(scales=scales)
        if self.scale_weights and len(self.scale_weights) != scales:
            raise ValueError(f"method.scale_weights needs {scales} values, one per scale")


class PsclSimclrConfig(PatchConfig):
    """PSCL with in-batch negatives (spec section 4)."""

    name: Literal["pscl-simclr"] = "pscl-simclr"

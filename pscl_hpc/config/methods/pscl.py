"""Patch-sampled contrastive learning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pscl_hpc.config.common import Count, Fraction, NonNegative, Positive
from pscl_hpc.config.methods.base import MethodBase, ReferencedMethod
from pscl_hpc.config.methods.momentum import MomentumConfig


class PatchConfig(MethodBase):
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

    def check(self, *, widths: tuple[int, ...]) -> None:
        """Raise ValueError where weights or heads do not fit the trunk's decoder."""
        super().check(widths=widths)
        scales = len(widths) - 1
        if self.scale_weights and len(self.scale_weights) != scales:
            raise ValueError(f"method.scale_weights needs {scales} values, one per scale")
        for width in widths[:-1]:
            for key, value in (("model.widths", width), ("method.hidden", min(self.hidden, width))):
                if value % self.head_groups:
                    raise ValueError(
                        f"{key} has {value}, which is no multiple of method.head_groups ({self.head_groups}): set "
                        f"{key} to multiples of it, or method.head_groups=1"
                    )

    def paired_stride(self, *, scales: int) -> int:
        """That of the coarsest decoder map."""
        return int(2 ** (scales - 1))


class AnnotatedPatchConfig(PatchConfig, ReferencedMethod):
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


class PsclSimclrConfig(AnnotatedPatchConfig):
    """PSCL with in-batch negatives (Sci. Rep. 2025, doi 10.1038/s41598-025-32855-5)."""

    name: Literal["pscl-simclr"] = "pscl-simclr"


class PsclMocoConfig(AnnotatedPatchConfig):
    """PSCL with a momentum encoder of keys and queues of images and class prototypes (docs/methods.md, PSCL-MoCo)."""

    name: Literal["pscl-moco"] = "pscl-moco"
    templates_per_class: Count = 30
    """Template patches per class at the coarsest scale."""
    momentum: MomentumConfig = MomentumConfig()
    """How the key encoder follows."""
    queue_steps: Count = 56
    """The queues hold the images of so many steps: 504 at the released batch of 8 images and a reference."""
    image_production_batch_decay: Fraction = 0.2
    """Target of a queued image of the same production batch, to the power of its age in steps."""
    patch_production_batch_decay: Fraction = 0.5
    """Target of a queued prototype of the same class and production batch, to the power of its age in steps."""
    patch_class_decay: Fraction = 0.2
    """Target of a queued prototype of the same class, to the power of its age in steps; added to the former."""
    scale_targets: bool = True
    """Targets of the queue are multiplied by 9 / (images per step), so that their sum is the same for every batch: 9 is
    the released one, with the reference. false: as released, where the sum grows with the batch, and with it the share
    of targets that are not the patch's own."""
    normalise_targets: bool = True
    """Targets of a patch or image are divided by their sum. false: as released, where those with many relatives in the
    queue weigh more."""
    normalise_prototypes: bool = True
    """Prototypes have length 1, as all keys. false: as released, the plain mean."""
    queue_references: bool = False
    """Also keep the image keys of references, as released: each then meets its own old keys as negatives at every
    step. Their class prototypes are always kept."""


class PsclClusteredConfig(PatchConfig):
    """PSCL with in-batch negatives and without annotation: clusters of patches stand for classes."""

    name: Literal["pscl-clustered"] = "pscl-clustered"
    clusters: Annotated[int, Field(ge=2)] = 6
    """Number of clusters; about as many as there are phases that look different."""
    projection_weight: NonNegative = 0.25
    """Pixels are clustered by fixed descriptors of grey level and roughness and by their projections. This is the
    weight of the projections at the end of the run, to which it rises from 0; projections have length 1, descriptors
    about the same. 0: by descriptors alone."""
    confident: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of each cluster's pixels in an image that count as its own: those whose nearest centre is most clearly the
    nearest. The others are of unknown class."""
    patches_per_image: Count = 1024
    """Random pixels of each image by which the clusters are found and followed."""
    memory: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Share of the old value in the moving averages of the clusters, per step."""

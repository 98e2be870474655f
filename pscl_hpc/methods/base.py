"""What a pretraining method is: loss terms from two views. It knows nothing of loops, files or schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field, SerializeAsAny, WrapValidator
from torch import Tensor, nn

from pscl_hpc.archive import Collection
from pscl_hpc.config import Count, NamedConfig, Registry, Strict
from pscl_hpc.models import Features, Trunk, TrunkMaps
from pscl_hpc.seeding import Draws
from pscl_hpc.views import ViewGeometry


class MethodConfig(NamedConfig):
    """Base of the ``method`` section."""

    smallest_batch: ClassVar[int] = 2
    """Fewest unlabelled images of one forward pass: a single image has no negatives."""
    smallest_per_rank: ClassVar[int] = 1
    """Fewest images of one rank's forward pass where each rank has its own batch statistics."""

    def check(self, maps: TrunkMaps) -> None:
        """Raise ValueError where the section does not fit a trunk with these maps."""

    def paired_stride(self, maps: TrunkMaps) -> int:
        """Stride in pixels of the coarsest map whose patches are paired by their position in the views; 0: none is."""
        return 0


class ReferenceConfig(Strict):
    """The annotated images whose patches serve as class templates."""

    ids: tuple[str, ...] = ()
    """Image ids in the archive, ``dataset/stem``. Each step uses ``per_batch`` of them, drawn at random."""
    per_batch: Count = 1
    """Reference images in each forward pass. Templates come from all of them."""
    square: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of the one square of each reference whose annotation is used, as in fine-tuning; 0: all of it."""
    in_pool: bool = False
    """References are also drawn as unlabelled images, as released: then one image can be twice in a batch and its own
    image-level negative."""
    crop: Literal["random", "covering"] = "covering"
    """covering: of 16 random windows the one that shows the most classes; random: the first window."""


class ReferencedMethodConfig(MethodConfig):
    """A method that takes class templates from annotated images."""

    reference: ReferenceConfig = ReferenceConfig()
    """Where templates come from."""
    smallest_batch: ClassVar[int] = 1

    def check(self, maps: TrunkMaps) -> None:
        """Raise ValueError where no annotated image is named."""
        if not self.reference.ids:
            raise ValueError(f"method.reference.ids names no annotated image; {self.name} needs at least one")


@dataclass(frozen=True)
class Views:
    """A batch as a method sees it: the annotated references first, then the unlabelled images.

    Shape legend: R references, B images in all, C channels, h w pixels.
    """

    query: Tensor
    """View q, (B, C, h, w) in 0..1: the image's own geometry."""
    key: Tensor
    """View k, (B, C, h, w) in 0..1: made by ``geometry``."""
    geometry: ViewGeometry
    references: int
    """R; the others have no annotation as far as the method is concerned."""
    labels: Tensor
    """Masks in the image's own geometry, (B, h, w) uint8, 255 where unknown. Of the references they are the
    annotation; of the other images they serve to measure, never to learn."""
    comparable: Tensor
    """Whether an image's classes mean what the references' classes mean, bool (B,)."""
    production_batches: Tensor
    """Production batch of each image, int64 (B,): an index into ``Setting.production_batches``; -1 where unknown."""


@dataclass(frozen=True)
class PatchSample:
    """The patches of one scale that enter the patch loss. T templates, B images."""

    key_patches: Tensor
    """Row-major patches of view k, int64 (B, T); -1 where a template found none."""
    classes: Tensor
    """Class of each template, int64 (T,)."""
    shares: Tensor
    """Share of that class in the template's patch of the image's reference, (B, T); 0 where there is no template."""

    @property
    def valid(self) -> Tensor:
        """Whether there is a patch, bool (B, T)."""
        return self.key_patches >= 0

    @property
    def groups(self) -> Tensor:
        """Class of each row of the loss, int64 (B, T); -1 takes no part."""
        return torch.where(self.valid, self.classes, -1)


@dataclass
class MethodOutput:
    """Loss to descend, and named scalars to log."""

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a method knows about its run besides its own configuration."""

    annotated: Collection | None = None
    """The collection of the references; None for methods without references."""
    production_batches: tuple[str, ...] = ()
    """Names of the images' production batches."""
    images_per_step: int = 1
    """Images of one optimiser step over all ranks, references included."""
    backend: str = "auto"
    """Backend of the contrastive operations."""


class Method(nn.Module, ABC):
    """Base of all methods. ``trunk`` is the result of pretraining; everything else is dropped afterwards.

    With several ranks each one sees its own images. One rule holds for every method: **the loss is that of the whole
    batch of all ranks, equal on every rank, and its backward pass gives the part of the whole loss's gradient that runs
    through what this rank computed, so that the SUM over ranks is the gradient.** The training loop sums.

    - A method that contrasts images with each other passes ``process_group`` to the operations of ``pscl_kernels``;
      they obey the rule.
    - A loss that is a sum or mean over the rank's own images or patches goes through ``pscl_hpc.training.reduce``, once.

    State besides parameters (queues, momentum encoders, centres) must be equal on all ranks after each step: it is
    computed from gathered or averaged values only, and rank 0 saves it in the checkpoint. All ranks call the same
    collectives in the same order, whatever their images show.

    Args:
        trunk: What is trained.
        config: Settings of the method.
        setting: What the method knows about its run.
    """

    config: MethodConfig
    process_group: dist.ProcessGroup | None = None
    """The ranks that train together; None for one process. Set before the first step."""
    class_names: tuple[str, ...] = ()
    """Names of the classes of sampled patches where they are the method's own, not those of an annotation."""

    def __init__(self, trunk: Trunk, config: MethodConfig, setting: Setting) -> None:
        super().__init__()
        self.trunk = trunk
        self.config = config
        self.backend = setting.backend

    @abstractmethod
    def forward(self, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        """Loss of one batch.

        Args:
            views: The batch.
            draws: Every random choice of the method comes from it.
            measure: Also compute the terms that only serve the log.
        """

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step, for moving averages; ``progress`` goes from 0 to 1 over the run."""

    def key_features(self, views: Views) -> Features:
        """The maps of view k that patches are compared by; those of the trunk, unless the method has another encoder."""
        features: Features = self.trunk(views.key)
        return features

    def sample_patches(self, views: Views, key: Features, draws: Draws) -> tuple[PatchSample, ...]:
        """The patches that the method would contrast, per scale; none for methods without sampling.

        Args:
            views: The batch.
            key: What :meth:`key_features` gives.
            draws: Where templates are drawn from.
        """
        return ()

    def pictures(self, views: Views, draws: Draws) -> dict[str, Tensor]:
        """What else a person can see of the method, by name: (B, C, h, w) in 0..1 each, in the geometry of view q."""
        return {}


METHODS: Registry[MethodConfig, Method] = Registry("pscl_hpc.methods", default="pscl-simclr")

AnyMethod = Annotated[SerializeAsAny[MethodConfig], WrapValidator(METHODS.choose)]
"""Type of a configuration's ``method`` section."""


def build_method(config: MethodConfig, trunk: Trunk, setting: Setting) -> Method:
    """The configured method on a trunk."""
    return METHODS.implementation(config)(trunk, config, setting)


def display_name(name: str) -> str:
    """How people write the name of a method; names that are not registered stay as they are."""
    return METHODS.config(name).display_name if name in METHODS.names else name

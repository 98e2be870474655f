"""The interface of a pretraining method: a loss from two views, independent of loops, files and schedules."""

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
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import Features, Trunk, TrunkMaps
from pscl_hpc.seeding import Draws
from pscl_hpc.views import ViewGeometry


class MethodConfig(NamedConfig):
    """Base of the ``method`` section."""

    smallest_batch: ClassVar[int] = 2
    """Minimum number of unlabelled images in a forward pass. A single image has no negatives."""
    smallest_per_rank: ClassVar[int] = 1
    """Minimum number of images in a forward pass of one rank with its own batch statistics."""

    def check(self, maps: TrunkMaps) -> None:
        """Raise ValueError if the section does not fit a trunk with these maps."""

    def paired_stride(self, maps: TrunkMaps) -> int:
        """Stride in pixels of the coarsest map whose patches are paired by geometry; 0 if none is."""
        return 0


class ReferenceConfig(Strict):
    """The annotated images that give class templates."""

    ids: tuple[str, ...] = ()
    """Ids of annotated images in the archive, ``dataset/stem``. Each step uses ``per_batch`` of them, drawn at
    random."""
    per_batch: Count = 1
    """Reference images in each forward pass. Templates come from all of them."""
    square: Annotated[int, Field(ge=0)] = 0
    """Use only the annotation in one square of each reference, as in fine-tuning: its side in pixels; 0: all of it."""
    in_pool: bool = False
    """Also draw references as unlabelled images, as released. An image can then be in a batch twice and be its own
    image-level negative."""
    crop: Literal["random", "covering"] = "covering"
    """covering: the one of 16 random windows with the most classes; random: the first window."""


class ReferencedMethodConfig(MethodConfig):
    """A method that takes class templates from annotated images."""

    reference: ReferenceConfig = ReferenceConfig()
    """The annotated images and how they are used."""
    smallest_batch: ClassVar[int] = 1

    def check(self, maps: TrunkMaps) -> None:
        """Raise ValueError if no annotated image is named."""
        if not self.reference.ids:
            raise ValueError(
                f"method.reference.ids is empty; {self.name} needs the id of at least one annotated image"
            )


@dataclass(frozen=True)
class Views:
    """A batch: the annotated references first, then the unlabelled images.

    Shape legend: R references, B images including references, C channels, h w pixels.
    """

    query: Tensor
    """View q, (B, C, h, w) in 0..1: the geometry of the image."""
    key: Tensor
    """View k, (B, C, h, w) in 0..1: view q transformed by ``geometry``."""
    geometry: ViewGeometry
    references: int
    """R. The method uses the annotation of these images only."""
    labels: Tensor
    """Masks in the geometry of view q, (B, h, w) uint8, 255 where unknown. Masks of other images than the references
    are for logged measurements, never for the loss."""
    comparable: Tensor
    """Whether an image has the same classes as the references, bool (B,)."""
    production_batches: Tensor
    """Production batch of each image, int64 (B,): an index into ``Setting.production_batches``; -1 if unknown."""


@dataclass(frozen=True)
class PatchSample:
    """The patches of one scale in the patch loss. T templates, B images."""

    key_patches: Tensor
    """Row-major indices of patches of view k, int64 (B, T); -1 where a template found none."""
    classes: Tensor
    """Class of each template, int64 (T,)."""
    shares: Tensor
    """Share of this class in the template's patch of the reference, (B, T); 0 where there is no template."""

    @property
    def valid(self) -> Tensor:
        """Whether the patch exists, bool (B, T)."""
        return self.key_patches >= 0

    @property
    def groups(self) -> Tensor:
        """Class of each row of the loss, int64 (B, T); -1 for rows to ignore."""
        return torch.where(self.valid, self.classes, -1)


@dataclass
class MethodOutput:
    """Loss to minimise, and named scalars to log."""

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """Information about the run that is not in the configuration of the method."""

    annotated: Collection | None = None
    """Collection of the references; None for methods without references."""
    production_batches: tuple[str, ...] = ()
    """Names of the images' production batches."""
    images_per_step: int = 1
    """Images of one optimiser step over all ranks, including references."""
    backend: str = "auto"
    """Backend of the operations in ``pscl_kernels``."""


class Method(nn.Module, ABC):
    """Base of all methods. ``trunk`` is the result of pretraining; everything else is dropped afterwards.

    With several ranks, each rank has its own images, and every method obeys one rule: **the loss is the loss of the
    whole batch of all ranks, equal on every rank. Its backward pass gives the part of the gradient that flows through
    the tensors of this rank, so that the SUM over ranks is the gradient of the whole loss.** The training loop sums.

    - A method that contrasts images with each other passes ``process_group`` to the operations of ``pscl_kernels``,
      which obey the rule.
    - A sum or mean over the images or patches of a rank goes through ``pscl_hpc.training.reduce``, once.

    State besides parameters (queues, momentum encoders, centres) must be equal on all ranks after each step: compute it
    from gathered or reduced values only. Rank 0 saves it in the checkpoint. All ranks must call the same collectives in
    the same order, whatever their images show.

    Args:
        trunk: The network to train.
        config: Settings of the method.
        setting: Information about the run.
    """

    config: MethodConfig
    process_group: dist.ProcessGroup | None = None
    """The ranks of the run; None for one process. Set before the first step."""
    class_names: tuple[str, ...] = ()
    """Names of the classes of sampled patches if the method defines them, instead of an annotation."""

    def __init__(self, trunk: Trunk, config: MethodConfig, setting: Setting) -> None:
        super().__init__()
        self.trunk = trunk
        self.config = config
        self.backend = setting.backend

    def forward(self, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        """Loss of one batch.

        Args:
            views: The batch.
            draws: Source of all random numbers of the method.
            measure: Also compute the terms that are only logged.
        """
        return self.loss(self.embed(views, draws, measure), measure)

    @abstractmethod
    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """What the loss needs of these images.

        With ``accumulate=exact`` it is called for parts of the batch, first without gradient and then again with
        gradient: images must not influence each other here, and nothing may be changed or staged. Work without
        gradient that both calls need belongs into ``draws.once``. Arguments as for :meth:`forward`.
        """

    @abstractmethod
    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """Loss of the whole batch. Everything that is compared, averaged, staged or normalised over images is here.

        Args:
            embedding: Of all images of this rank.
            measure: Also compute the terms that are only logged.
        """

    def survey(self, views: Views, draws: Draws) -> Tensor | None:
        """What :meth:`begin` must know of these images, (n, ...), before any image is embedded in parts; None: nothing.

        Arguments as for :meth:`forward`.
        """
        return None

    def begin(self, found: Tensor) -> None:
        """Initialise from the :meth:`survey` of all images of this rank."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step, to update moving averages. ``progress`` goes from 0 to 1 over the run."""

    def key_features(self, views: Views) -> Features:
        """The maps of view k for comparing patches: those of the trunk, unless the method has a key encoder."""
        features: Features = self.trunk(views.key)
        return features

    def sample_patches(self, views: Views, key: Features, draws: Draws) -> tuple[PatchSample, ...]:
        """The sampled patches of each scale; empty for methods without sampling.

        Args:
            views: The batch.
            key: Output of :meth:`key_features`.
            draws: Source of random numbers.
        """
        return ()

    def pictures(self, views: Views, draws: Draws) -> dict[str, Tensor]:
        """Other pictures for the report, by name: (B, C, h, w) in 0..1 each, in the geometry of view q."""
        return {}


METHODS: Registry[MethodConfig, Method] = Registry("pscl_hpc.methods", default="pscl-simclr")

AnyMethod = Annotated[SerializeAsAny[MethodConfig], WrapValidator(METHODS.choose)]
"""Type of a configuration's ``method`` section."""


def build_method(config: MethodConfig, trunk: Trunk, setting: Setting) -> Method:
    """The configured method on a trunk."""
    return METHODS.implementation(config)(trunk, config, setting)


def display_name(name: str) -> str:
    """The name of a method for display. A name that is not registered is returned unchanged."""
    return METHODS.config(name).display_name if name in METHODS.names else name

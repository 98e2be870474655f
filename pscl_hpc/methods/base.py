"""What a pretraining method is: loss terms from two views. It knows nothing of loops, files or schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pscl_hpc.archive import Collection
from pscl_hpc.config import PretrainConfig
from pscl_hpc.models import Features, UNet
from pscl_hpc.seeding import Draws
from pscl_hpc.views import ViewGeometry


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
    """What a method is told about the images before it sees any."""

    annotated: Collection | None = None
    """The collection of the references; None for methods without references."""
    production_batches: tuple[str, ...] = ()
    """Production batches of the images, by name."""


class Method(nn.Module, ABC):
    """Base of all methods. ``trunk`` is what pretraining is for; all else is dropped afterwards.

    With several ranks each one sees its own images. One rule holds for every method: **the loss is that of the whole
    batch of all ranks, equal on every rank, and its backward pass gives the part of the whole loss's gradient that runs
    through what this rank computed, so that the SUM over ranks is the gradient.** The trainer sums.

    - A method that contrasts images with each other passes ``process_group`` to the operations of ``pscl_kernels``;
      they obey the rule.
    - A loss that is a sum or mean over the rank's own images or patches goes through ``pscl_hpc.training.reduce``, once.

    State that is no parameter (queues, momentum encoders, centres) must be equal on all ranks after each step: it is
    made from gathered or averaged values only, and rank 0's copy is the one in a checkpoint. All ranks call the same
    collectives in the same order, whatever their images show.
    """

    process_group: dist.ProcessGroup | None = None
    """The ranks that train together; None for one process. Set before the first step."""
    class_names: tuple[str, ...] = ()
    """Names of the classes of sampled patches, where they are the method's own and not those of an annotation."""

    def __init__(self, trunk: UNet) -> None:
        super().__init__()
        self.trunk = trunk

    @classmethod
    @abstractmethod
    def build(cls, trunk: UNet, config: PretrainConfig, setting: Setting) -> Method:
        """The method of a run's configuration."""

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

"""What a pretraining method is: loss terms from two views. It knows nothing of loops, files or schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pscl_hpc.models import Features, UNet
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


@dataclass(frozen=True)
class CellSample:
    """The cells of one scale that enter the patch loss. T templates, B images."""

    key_cells: Tensor
    """Row-major cells of view k, int64 (B, T); -1 where a template found none."""
    classes: Tensor
    """Class of each template, int64 (T,)."""

    @property
    def valid(self) -> Tensor:
        """Whether there is a cell, bool (B, T)."""
        return self.key_cells >= 0

    @property
    def groups(self) -> Tensor:
        """Class of each row of the loss, int64 (B, T); -1 takes no part."""
        return torch.where(self.valid, self.classes, -1)


@dataclass
class MethodOutput:
    """Loss to descend, and named scalars to log."""

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """Base of all methods. ``trunk`` is what pretraining is for; all else is dropped afterwards."""

    def __init__(self, trunk: UNet) -> None:
        super().__init__()
        self.trunk = trunk

    @abstractmethod
    def forward(self, views: Views, generator: torch.Generator, measure: bool = False) -> MethodOutput:
        """Loss of one batch.

        Args:
            views: The batch.
            generator: On the views' device; every random choice of the method comes from it.
            measure: Also compute the terms that only serve the log.
        """

    def after_step(self) -> None:
        """Called after each optimiser step: moving averages, queues."""

    def sample_cells(self, views: Views, key: Features, generator: torch.Generator) -> tuple[CellSample, ...]:
        """The cells that the method would contrast, per scale; none for methods without sampling."""
        return ()

"""The interface of a trunk: an encoder and a decoder with feature maps at several strides.

Losses, heads, planning, checks and weights files use this interface only. A trunk is one module of this package with
its settings and its network, registered in :data:`TRUNKS`.

Shape legend: B images, C channels, h w pixels, S decoder maps ("scales"; scale 0 is the coarsest, scale S - 1 has full
resolution).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import SerializeAsAny, WrapValidator
from torch import Tensor, nn

from pscl_hpc.config import NamedConfig, Registry


class Features(NamedTuple):
    """Output of a trunk: the bottleneck (B, C, h', w') and the decoder maps, coarse to fine."""

    bottleneck: Tensor
    scales: tuple[Tensor, ...]


class MapShape(NamedTuple):
    """Channels of a feature map, and its stride: image pixels per map pixel along each axis."""

    channels: int
    stride: int


@dataclass(frozen=True)
class TrunkMaps:
    """The maps of a trunk, which follow from its settings."""

    encoder: tuple[MapShape, ...]
    """Full resolution first; the last is the bottleneck."""
    scales: tuple[MapShape, ...]
    """Decoder maps, coarse to fine; the last has full resolution."""

    @property
    def bottleneck(self) -> MapShape:
        """The coarsest map."""
        return self.encoder[-1]


class TrunkConfig(NamedConfig):
    """Base of the ``model`` section. It is stored in weights files to rebuild the trunk."""

    in_channels: Literal[1, 3] = 1
    """1: grey; 3: colour, or grey repeated."""
    standardise: bool = False
    """Standardise each image to mean 0.5 and standard deviation 1/6, clipped to 0..1, to remove differences in
    exposure. Windows use the statistics of the WHOLE image."""

    @property
    def maps(self) -> TrunkMaps:
        """Channels and strides of all maps."""
        raise NotImplementedError(type(self).__name__)

    @property
    def pretrained(self) -> bool:
        """Whether :meth:`Trunk.load_initial_weights` loads an encoder that was trained before."""
        return False

    def check_same(self, found: TrunkConfig) -> None:
        """Raise ValueError, naming the first key that differs, if a trunk that was loaded is another one."""
        if self != found:
            wanted, given = self.model_dump(), found.model_dump()
            key = next(key for key in (*wanted, *given) if wanted.get(key) != given.get(key))
            raise ValueError(
                f"model.{key} is {wanted.get(key)}, but the pretrained trunk has {given.get(key)}; set it to that value"
            )

    def check_window(self, key: str, size: tuple[int, int], images: int) -> None:
        """Raise ValueError if the trunk does not fit its training windows.

        Args:
            key: Configuration key of the window size, for the message.
            size: Height and width of the windows in pixels.
            images: Windows in one forward pass.
        """
        stride = self.maps.bottleneck.stride
        height, width = (side // stride for side in size)
        if not height * width:
            raise ValueError(
                f"{key} is {list(size)}, but the bottleneck of this trunk (model) has a stride of {stride}; "
                f"increase {key} to at least {stride} pixels per side"
            )
        if images * height * width == 1:
            raise ValueError(
                f"{key} is {list(size)} with one window per step, so each bottleneck feature (stride {stride}) has a "
                f"single value and batch statistics do not exist; increase {key} or set batch_size=2"
            )


class Trunk(nn.Module, ABC):
    """Images (B, C, h, w) in 0..1 to :class:`Features`.

    Intensities are normalised inside, so that a weights file is all that prediction needs. h and w may be any numbers
    not smaller than the stride of the bottleneck. All parameters are in ``encoder`` or ``decoder``.
    """

    config: TrunkConfig
    encoder: nn.Module
    """Fine-tuned with ``encoder_lr_scale`` if it is pretrained."""
    decoder: nn.Module
    recomputed: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Modules with one input and one output that activation checkpointing may compute again in the backward pass."""

    @property
    def maps(self) -> TrunkMaps:
        """Channels and strides of all maps."""
        return self.config.maps

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.config.in_channels

    def load_initial_weights(self) -> None:
        """Load the weights of a new run, for example from ImageNet. Not called for a trunk from a weights file."""

    @abstractmethod
    def normalise(self, images: Tensor) -> Tensor:
        """Images in 0..1 to the input of the first layer, (B, C, h, w)."""

    @abstractmethod
    def denormalise(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of the encoder, full resolution first; the last is the bottleneck. Input: images in 0..1."""

    @abstractmethod
    def decode(self, maps: Sequence[Tensor]) -> Features:
        """Apply the decoder to the output of :meth:`encode`."""

    def forward(self, images: Tensor) -> Features:
        """Encoder and decoder."""
        return self.decode(self.encode(images))


def channels_last(images: Tensor) -> Tensor:
    """Images (B, C, h, w) in channels-last memory, in which a trunk computes faster.

    The strides of a contiguous image of one channel fit both layouts, and torch takes it as channels-first.
    """
    if images.shape[1] == 1:
        return images.contiguous()[:, 0, :, :, None].permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


TRUNKS: Registry[TrunkConfig, Trunk] = Registry("pscl_hpc.models", default="unet")

AnyTrunk = Annotated[SerializeAsAny[TrunkConfig], WrapValidator(TRUNKS.choose)]
"""Type of a configuration's ``model`` section."""


def build_trunk(config: TrunkConfig, *, initial: bool = True) -> Trunk:
    """A trunk for a new run; without ``initial``, a trunk whose weights will be loaded from a file."""
    trunk = TRUNKS.implementation(config)(config)
    if initial:
        trunk.load_initial_weights()
    return trunk

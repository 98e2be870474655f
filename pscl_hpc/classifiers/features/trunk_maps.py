"""Maps of a frozen trunk, and classical filters beside them.

Shape legend as in :mod:`pscl_hpc.classifiers.features.base`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.classifiers.features.base import FEATURES, FeatureConfig, FeatureSet, Picture, PixelMaps
from pscl_hpc.classifiers.features.filters import FilterSettings, filter_count, filter_maps, filter_reach
from pscl_hpc.config import Count
from pscl_hpc.errors import UserError
from pscl_hpc.models import TRUNKS, AnyTrunk, MapShape, Trunk, build_trunk, load_trunk
from pscl_hpc.seeding import derive_seed

_HALO = 128
"""Receptive fields are larger, but their rims have hardly any weight."""
_GRID = 128
"""Parts of an image begin at multiples of it, so that the maps of a part are those of the image."""


class TrunkFeatureConfig(FeatureConfig):
    """Encoder maps of a frozen trunk, and classical filters of the grey level."""

    name: Literal["trunk"] = "trunk"
    model: AnyTrunk | None = None
    """The trunk; absent: that of ``pretrained``."""
    strides: tuple[Count, ...] = (2, 4, 8, 16)
    """The encoder maps with these strides, in pixels of the magnified image."""
    decoder: bool = False
    """Also the decoder maps with these strides; for a trunk whose decoder was pretrained."""
    upscale: Literal[1, 2, 4] = 2
    """Magnification of the image for the trunk. At 2 a map of stride 2 has a value for every pixel."""
    filters: FilterSettings | None = FilterSettings()
    """Filters beside the maps; null: the maps alone."""

    @model_validator(mode="after")
    def _some(self) -> TrunkFeatureConfig:
        if not self.strides:
            raise ValueError("strides is empty; name at least one, for example [2, 4, 8, 16]")
        return self

    def check_trunk(self, pretrained: str) -> None:
        """See :class:`FeatureConfig`."""
        if self.model is None and not pretrained:
            raise ValueError(
                "features.model names no trunk and pretrained no run; set one of them; trunks are: "
                f"{', '.join(TRUNKS.names)}"
            )


@FEATURES.register(TrunkFeatureConfig)
class TrunkFeatures(FeatureSet):
    """The features of :class:`TrunkFeatureConfig`.

    Raises:
        UserError: there are no weights, another trunk is pretrained than ``model`` names, a stride has no map, or
            decoder maps of a decoder without training are named.
    """

    config: TrunkFeatureConfig

    def __init__(self, config: TrunkFeatureConfig, pretrained: str = "", *, initial: bool = True) -> None:
        self.trunk = _trunk(config, pretrained, initial=initial)
        # With the description of the trunk, from which a file builds it again.
        self.config = config.model_copy(update={"model": self.trunk.config})
        if config.decoder and initial and not pretrained:
            raise UserError("features.decoder is true, but only a trunk of a pretraining run has a trained decoder; "
                            "name one with pretrained=RUN, or set features.decoder=false")  # fmt: skip
        shapes = self.trunk.maps
        self._encoder = _chosen(shapes.encoder, config.strides)
        self._decoder = _chosen(shapes.scales, config.strides) if config.decoder else ()
        missing = set(config.strides) - {shapes.encoder[place].stride for place in self._encoder}
        if missing:
            known = sorted(shape.stride for shape in shapes.encoder)
            raise UserError(
                f"features.strides has {min(missing)}, but the encoder maps of {self.trunk.config.name} have the strides "
                f"{known}; choose from these"
            )
        self.in_channels = self.trunk.in_channels
        self.standardise = self.trunk.config.standardise
        chosen = [*(shapes.encoder[i] for i in self._encoder), *(shapes.scales[i] for i in self._decoder)]
        self._strides = [shape.stride / config.upscale for shape in chosen]
        self.count = sum(shape.channels for shape in chosen)
        self.halo = _HALO
        if config.filters is not None:
            self.count += filter_count(config.filters)
            self.halo = max(self.halo, -(-filter_reach(config.filters) // _GRID) * _GRID)

    @torch.inference_mode()
    def maps(self, picture: Picture) -> PixelMaps:
        image = picture.image
        device = next(self.trunk.parameters()).device
        smallest = -(-self.trunk.maps.bottleneck.stride // self.config.upscale)
        # An image smaller than the total stride is extended by its own pixels.
        rim = [max(0, smallest - side) for side in image.shape[1:]]
        padded = F.pad(image[None], (0, rim[1], 0, rim[0]), mode="replicate")
        size = [side * self.config.upscale for side in padded.shape[2:]]
        if self.config.upscale > 1:
            padded = F.interpolate(padded, size=size, mode="bilinear", align_corners=False)
        encoded = self.trunk.encode(padded.to(device))
        maps = [encoded[place] for place in self._encoder]
        if self._decoder:
            scales = self.trunk.decode(encoded).scales
            maps += [scales[place] for place in self._decoder]
        found = PixelMaps.of([values[0] for values in maps], self._strides)
        return found + filter_maps(picture.grey, self.config.filters) if self.config.filters else found

    def to(self, device: torch.device) -> None:
        self.trunk.to(device)

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.trunk.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.trunk.load_state_dict(weights)


def _trunk(config: TrunkFeatureConfig, pretrained: str, *, initial: bool) -> Trunk:
    wanted = config.model
    if pretrained:
        trunk = load_trunk(pretrained)
        if wanted is not None and wanted != trunk.config:
            raise UserError(
                f"features.model describes another trunk ({wanted.name}) than {pretrained} ({trunk.config.name}); "
                "remove the key"
            )
    else:
        assert wanted is not None, "the configuration names the trunk where none is pretrained"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, "weights"))
            trunk = build_trunk(wanted, initial=initial)
    return trunk.eval().requires_grad_(False)


def _chosen(shapes: tuple[MapShape, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(place for place, shape in enumerate(shapes) if shape.stride in strides)

"""Any encoder of the package timm (github.com/huggingface/pytorch-image-models), with a decoder.

timm is imported when such a trunk is used. Shape legend as in :mod:`pscl_hpc.models.trunk`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import check_folder
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.models.skip_decoder import GROUPS, SkipDecoder
from pscl_hpc.models.trunk import TRUNKS, Features, MapShape, Trunk, TrunkConfig, TrunkMaps, channels_last

_INITS = ("imagenet", "random")
_Width = Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)]


class TimmConfig(TrunkConfig):
    """An encoder of the package timm, by default with its published weights, and a decoder with skip connections."""

    name: Literal["timm"]
    display_name: ClassVar[str] = "timm"
    short_key: ClassVar[str] = "encoder"
    encoder: str
    """timm's name of the encoder, such as convnext_tiny.in12k; ``name: timm:convnext_tiny.in12k`` is a short form."""
    standardise: bool = True
    """Standardise each image to mean 0.5 and standard deviation 1/6, by the statistics of the whole image."""
    init: str = "imagenet"
    """Initial weights of the encoder: imagenet, the weights that timm downloads or has in its cache; random; or a
    .safetensors file with timm's names, for machines without internet."""
    decoder_widths: tuple[_Width, ...] = (128, 96, 64, 48, 32)
    """Channels of the decoder maps, coarse to fine; multiples of 8. There is one for each map of the encoder: of an
    encoder with fewer maps the last ones are used."""

    @field_validator("init")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in _INITS and not value.endswith(".safetensors"):
            raise ValueError("init must be imagenet, random or the path of a .safetensors file")
        return check_folder("init", value)

    @property
    def pretrained(self) -> bool:
        """See :class:`TrunkConfig`."""
        return self.init != "random"

    @property
    def maps(self) -> TrunkMaps:
        """See :class:`TrunkConfig`. UserError where timm or the encoder does not exist, or the encoder does not fit."""
        found = _encoder_maps(self.encoder, self.in_channels)
        if len(self.decoder_widths) < len(found):
            raise UserError(
                f"model.decoder_widths has {len(self.decoder_widths)} widths, but {self.encoder} has {len(found)} maps; "
                "give one width for each"
            )
        widths = self.decoder_widths[-len(found) :]
        encoder = (MapShape(widths[-1], 1), *found)
        scales = tuple(
            MapShape(width, skip.stride) for width, skip in zip(widths, encoder[-2::-1], strict=True)
        )
        return TrunkMaps(encoder, scales)


@TRUNKS.register(TimmConfig)
class TimmTrunk(Trunk):
    """The trunk of :class:`TimmConfig`.

    Maps of a vision transformer all have the stride of its patches; the decoder fuses them and goes to full resolution
    in one step. Images are extended to whole patches by repeating the edge.
    """

    config: TimmConfig
    decoder: SkipDecoder

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        maps = config.maps
        self.encoder = _create(config.encoder, config.in_channels)
        self.decoder = SkipDecoder(config.in_channels, maps)
        self._multiple = _patch(maps.encoder[1:])
        self.mean: Tensor
        self.std: Tensor
        for key, value in _statistics(self.encoder, config.in_channels).items():
            self.register_buffer(key, value, persistent=False)

    def load_initial_weights(self) -> None:
        """See :class:`Trunk`: timm's weights, or those of a file, in the encoder."""
        if self.config.init != "random":
            self.encoder.load_state_dict(_weights(self.config))

    def normalise(self, images: Tensor) -> Tensor:
        """See :class:`Trunk`: by the statistics of the encoder's weights; grey by their means over the colours."""
        return (images - self.mean) / self.std

    def denormalise(self, values: Tensor) -> Tensor:
        """See :class:`Trunk`."""
        return values * self.std + self.mean

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Trunk`."""
        x = channels_last(self.normalise(images))
        return (self.decoder.detail(x), *_forward(self.encoder, x, self._multiple))

    def decode(self, maps: Sequence[Tensor]) -> Features:
        """See :class:`Trunk`."""
        return self.decoder(maps)  # type: ignore[no-any-return]


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            f"model.name is timm, but timm cannot be imported ({error}); pip install 'pscl-hpc[timm]', or choose "
            "another trunk"
        ) from None


def _create(encoder: str, in_channels: int, **weights: Any) -> Any:
    """timm's network that gives maps. timm sums the colour weights of the first convolution for a grey input."""
    options = {"features_only": True, "in_chans": in_channels, **weights}
    try:
        # Vision transformers have a fixed size of the image unless they are asked; others do not know the option.
        return _timm().create_model(encoder, dynamic_img_size=True, **options)
    except TypeError:
        return _timm().create_model(encoder, **options)


@functools.cache
def _encoder_maps(encoder: str, in_channels: int) -> tuple[MapShape, ...]:
    """The maps of an encoder, fine to coarse, checked by a trial on an image of an odd shape."""
    timm = _timm()
    if not timm.is_model(encoder):
        raise UserError(
            f"model.encoder is {encoder}: timm has no such model{did_you_mean(encoder, timm.list_models())}"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            net = _create(encoder, in_channels).eval()
        shapes = tuple(map(MapShape, net.feature_info.channels(), net.feature_info.reduction()))
        sides = (2 * shapes[-1].stride, 3 * shapes[-1].stride + 1)
        with torch.no_grad():
            found = _forward(net, torch.zeros(1, in_channels, *sides), _patch(shapes))
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        NotImplementedError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model.encoder is {encoder}, which timm cannot use for maps of images of any size ({reason}); choose another"
        ) from None
    strides = [shape.stride for shape in shapes]
    for shape, one in zip(shapes, found, strict=True):
        floor = tuple(side // shape.stride for side in sides)
        fits = all(low <= size <= low + 1 for low, size in zip(floor, one.shape[2:], strict=True))
        if one.shape[1] != shape.channels or not fits or strides != sorted(strides):
            raise UserError(
                f"model.encoder is {encoder}, whose maps ({list(one.shape[1:])} at stride {shape.stride}, image "
                f"{list(sides)}) are not what this trunk needs; choose another"
            )
    return shapes


def _patch(shapes: Sequence[MapShape]) -> int:
    """The side of the patches of a vision transformer; 1 for other encoders."""
    strides = {shape.stride for shape in shapes}
    return strides.pop() if len(strides) == 1 else 1


def _forward(encoder: Any, x: Tensor, multiple: int) -> list[Tensor]:
    """The maps (B, C, h', w'), fine to coarse."""
    rows, cols = (-side % multiple for side in x.shape[2:])
    if rows or cols:
        x = F.pad(x, (0, cols, 0, rows), mode="replicate")
    layout = getattr(encoder, "output_fmt", "NCHW")
    maps = encoder(x)
    return [one.permute(0, 3, 1, 2) for one in maps] if getattr(layout, "value", layout) == "NHWC" else maps


def _statistics(encoder: Any, in_channels: int) -> dict[str, Tensor]:
    """Mean and standard deviation of the input of the weights, (1, C, 1, 1)."""
    known = getattr(encoder, "pretrained_cfg", None) or {}
    found = {}
    for key, fallback in (("mean", 0.5), ("std", 0.25)):
        value = torch.tensor(known.get(key) or (fallback,) * 3, dtype=torch.float32)
        found[key] = (value if in_channels == 3 else value.mean(dim=0, keepdim=True)).view(1, -1, 1, 1)
    return found


def _weights(config: TimmConfig) -> dict[str, Tensor]:
    """Pretrained weights of the encoder, by timm's own loading.

    Raises:
        UserError: they cannot be loaded, or some of the encoder's are missing among them.
    """
    where = "its published weights" if config.init == "imagenet" else f"the weights of {config.init}"
    options: dict[str, Any] = {"pretrained": True}
    if config.init != "imagenet":
        if not Path(config.init).is_file():
            raise UserError(
                f"model.init is {config.init}: not found; name a .safetensors file, imagenet or random"
            )
        options["pretrained_cfg_overlay"] = {"file": config.init, "custom_load": False}
    made = []
    for loading in ({}, options):
        # The same random weights, so that those which are not loaded can be told.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                made.append(_create(config.encoder, config.in_channels, **loading))
            except Exception as error:  # of the network, the file or the weights: timm has no type for them
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(
                    f"model.encoder is {config.encoder}: {where} cannot be loaded ({reason}); set model.init to a "
                    ".safetensors file with timm's names, or to random"
                ) from None
    before, after = (dict(net.named_parameters()) for net in made)
    missing = [key for key, value in after.items() if value.ndim > 1 and torch.equal(value, before[key])]
    if missing:
        raise UserError(
            f"{config.encoder}: {where} have no {missing[0]} ({len(missing)} of {len(after)} are missing); "
            "give a .safetensors file with timm's names"
        )
    state: dict[str, Tensor] = made[1].state_dict()
    return state

"""Dense features by which patches are compared: of a trunk, or of filters where there is none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pscl_hpc.classifiers.features.filters import FilterSettings, filter_maps
from pscl_hpc.errors import UserError
from pscl_hpc.models import TRUNKS, Trunk, build_trunk, load_trunk

IMAGENET = "imagenet"
FILTERS = "filters"
_ENCODER = "efficientnet-lite0"
_STRIDES = (2, 16)
"""Encoder maps with a stride in this range are used: finer ones may be untrained, coarser ones blur the patches."""


class DenseFeatures(ABC):
    """Feature maps of an image."""

    name: str
    """For the user."""
    channels: int = 1
    standardise: bool = True
    """How images are read; see :meth:`Archive.read_unit`."""
    smallest: int = 1
    """Least height and width of an image in pixels; smaller ones are extended by reflection."""

    @abstractmethod
    def maps(self, image: npt.NDArray[np.float32]) -> list[Tensor]:
        """Maps (c, h', w') of an image (channels, h, w), each of any stride."""


class FilterFeatures(DenseFeatures):
    """The filters of pixel classifiers; needs no weights."""

    name = "classical filters"

    def maps(self, image: npt.NDArray[np.float32]) -> list[Tensor]:
        """See :class:`DenseFeatures`."""
        return [values.float() for values in filter_maps(torch.from_numpy(image), FilterSettings()).maps]


class TrunkFeatures(DenseFeatures):
    """Maps of a trunk's encoder."""

    def __init__(self, trunk: Trunk, name: str) -> None:
        self.trunk = trunk.eval()
        self.name = name
        self.channels = trunk.in_channels
        self.standardise = trunk.config.standardise
        strides = [shape.stride for shape in trunk.maps.encoder]
        self._used = [place for place, stride in enumerate(strides) if _STRIDES[0] <= stride <= _STRIDES[1]]
        self.smallest = strides[-1]

    @torch.inference_mode()
    def maps(self, image: npt.NDArray[np.float32]) -> list[Tensor]:
        """See :class:`DenseFeatures`."""
        found = self.trunk.encode(torch.from_numpy(image)[None])
        return [found[place][0] for place in self._used]


def dense_features(trunk: str = "") -> DenseFeatures:
    """The features that ``--trunk`` names.

    Args:
        trunk: ``imagenet``, ``filters``, or a run folder or weights file. Empty: ImageNet if its weights are installed,
            else filters.

    Raises:
        UserError: weights cannot be loaded.
    """
    if trunk == FILTERS:
        return FilterFeatures()
    if trunk not in ("", IMAGENET):
        return TrunkFeatures(load_trunk(Path(trunk)), f"trunk of {trunk}")
    try:
        encoder = build_trunk(TRUNKS.config(_ENCODER).model_validate({"name": _ENCODER}))
    except UserError:
        if trunk == IMAGENET:
            raise
        return FilterFeatures()
    return TrunkFeatures(encoder, "ImageNet features")

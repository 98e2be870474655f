"""Feature maps of archive images, computed in parts or read from a cache on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pscl_hpc.archive import Archive, Window
from pscl_hpc.classifiers.features.base import FeatureSet, Picture, PixelMaps
from pscl_hpc.files import writing
from pscl_hpc.models.weights import write_tensors
from pscl_hpc.working_size import resized

BLOCK = 1024
"""Side of the parts of an image, in pixels: limits the memory. A multiple of the strides of all trunks."""
_SMALLEST = 2
"""Least side of a resized image, in pixels."""
_REVISION = 2
"""Of the numbers in a cache: to be raised where the code changes them under the same settings."""


class Part(NamedTuple):
    """A part of an image with its features."""

    window: Window
    """Where it is in the image (y0, x0, height, width); parts cover the image and do not overlap."""
    outer: Window
    """The same with a halo, which the maps cover."""
    maps: PixelMaps

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of the part in its maps."""
        return self.window[0] - self.outer[0], self.window[1] - self.outer[1]


class FeatureCache:
    """Maps by content in one folder: a file's name is a hash of the pixels and of everything else that decides them.

    Any number of processes may use the same folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> PixelMaps | None:
        """The maps of a key; None where there are none that can be read."""
        try:
            with safe_open(self._path(key), framework="pt") as file:
                strides = [(float(y), float(x)) for y, x in json.loads(file.metadata()["strides"])]
                maps = tuple(file.get_tensor(str(place)) for place in range(len(strides)))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        return PixelMaps(maps, tuple(strides))

    def write(self, key: str, maps: PixelMaps) -> None:
        """Keep the maps of a key; JobError where they cannot be written."""
        path = self._path(key)
        tensors = {str(place): values.contiguous() for place, values in enumerate(maps.maps)}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"strides": json.dumps(maps.strides)})

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


class FeatureReader:
    """Features of archive images.

    Args:
        features: The feature set.
        cache: Where maps are kept; None: nowhere.
        block: Side of the parts in which large images are processed, in pixels.
        resize: Factor by which images are resized for the features.
    """

    def __init__(
        self,
        features: FeatureSet,
        cache: FeatureCache | None = None,
        *,
        block: int = BLOCK,
        resize: float = 1.0,
    ) -> None:
        self.features = features
        self.cache = cache
        self.block = block
        self.resize = resize
        self._settings = _digest(features, resize) if cache else ""

    def parts(self, archive: Archive, index: int) -> Iterator[Part]:
        """The parts of an image, one after the other."""
        record, block, halo = archive.records[index], self.block, math.ceil(self.features.halo / self.resize)
        for y0 in range(0, record.height, block):
            for x0 in range(0, record.width, block):
                y1, x1 = min(y0 + block, record.height), min(x0 + block, record.width)
                top, left = max(0, y0 - halo), max(0, x0 - halo)
                bottom, right = min(record.height, y1 + halo), min(record.width, x1 + halo)
                outer = (top, left, bottom - top, right - left)
                yield Part((y0, x0, y1 - y0, x1 - x0), outer, self.maps(archive, index, outer))

    def maps(self, archive: Archive, index: int, window: Window) -> PixelMaps:
        """The maps of a window of an image."""
        if self.cache is None:
            return self.maps_of(self.picture(archive, index, window))
        key = self._key(archive, index, window)
        found = self.cache.read(key)
        if found is None:
            found = self.maps_of(self.picture(archive, index, window))
            self.cache.write(key, found)
        return found

    def maps_of(self, picture: Picture) -> PixelMaps:
        """The maps of a picture; positions in them are those of the picture, whatever ``resize`` is."""
        if self.resize == 1:
            return self.features.maps(picture)
        grey = self._resized(picture.grey)
        small = Picture(grey if picture.image is picture.grey else self._resized(picture.image), grey)
        factors = (
            picture.grey.shape[1] / grey.shape[1],
            picture.grey.shape[2] / grey.shape[2],
        )
        return self.features.maps(small).of_larger(factors)

    def _resized(self, image: Tensor) -> Tensor:
        return resized(image[None], self.resize, _SMALLEST)[0]

    def picture(self, archive: Archive, index: int, window: Window) -> Picture:
        """A window of an image as the feature set reads it."""
        channels, standardise = self.features.in_channels, self.features.standardise
        grey = torch.from_numpy(archive.read_unit(index, window, standardise=True))
        if channels == 1 and standardise:
            return Picture(grey, grey)
        image = archive.read_unit(index, window, channels=channels, standardise=standardise)
        return Picture(torch.from_numpy(image), grey)

    def _key(self, archive: Archive, index: int, window: Window) -> str:
        row = archive.rows[index]
        content = [row.pixel_checksum, row.pool, row.height, row.width, row.low, row.high, *window]
        return hashlib.sha256(json.dumps([self._settings, content]).encode()).hexdigest()


def _digest(features: FeatureSet, resize: float) -> str:
    """A hash of the settings and weights of a feature set."""
    found = hashlib.sha256(json.dumps([_REVISION, resize, features.config.model_dump(mode="json")]).encode())
    for name, value in sorted(features.weights().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()

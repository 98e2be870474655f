"""What a trunk has learnt so far, measured during pretraining: a nearest-neighbour probe and the rank of its features.

Both are cheap, take no part in the loss, and use the same windows and pixels at every measurement of a run, so that only
the weights change from one to the next.

- *Probe*: pixels of annotated training images are classified by their 15 nearest pixels (cosine) in the other half of
  the windows; mean over classes of the share that is right.
- *Rank*: RankMe (Garrido et al., ICML 2023, equation 1): the exponential of the entropy of the singular values of the
  features of random pixels. 1: all features are multiples of one vector; at most the number of channels.

Maps are the bottleneck and the finest decoder map; methods that do not train the decoder improve the first alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.archive.windows import draw_window, read_window
from pscl_hpc.models import Features, Trunk
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.seeding import numpy_generator

NEIGHBOURS = 15
_IMAGES = 4
"""Annotated images, and windows of images without use of their annotation."""
_WINDOWS = 2
"""Windows of each annotated image."""
_PER_CLASS = 96
"""Pixels of a class in one half of a window, at most."""
_PER_WINDOW = 128
"""Pixels of a window for the rank."""
_SIDES = (3 / 8, 5 / 8)
"""Share of the width where the left half of a window ends and its right half begins: features near the middle see both."""


@dataclass(frozen=True)
class _Pixels:
    """Places in a stack of windows: window, row and column of each pixel, int64 (n,)."""

    window: Tensor
    row: Tensor
    column: Tensor

    def of(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Vectors (n, C) of the pixels in a map (B, C, H, W) of windows of ``size``, float32."""
        rows = self.row * features.shape[2] // size[0]
        columns = self.column * features.shape[3] // size[1]
        return features[self.window, :, rows, columns].float()


class FeatureProbe:
    """Measures a trunk. Windows are read at construction.

    Args:
        archive: Open archive.
        config: The run: its images, windows and seed.
        references: Annotated images that the method uses; by default the first annotated training images.
        images: Unlabelled images, at least one.
        device: Of the trunk.
    """

    def __init__(
        self,
        archive: Archive,
        config: PretrainConfig,
        references: Sequence[ImageRecord],
        images: Sequence[ImageRecord],
        device: torch.device,
    ) -> None:
        self.config = config
        self.device = device
        self.size = config.views.size
        annotated = (references or _annotated(archive, config))[:_IMAGES]
        random = numpy_generator(config.seed, "probe")
        chosen = [images[i] for i in random.permutation(len(images))[:_IMAGES]]
        self.plain, _ = self._read(archive, chosen, 1, random)
        count, (height, width) = len(self.plain), self.size
        self._random = _Pixels(
            torch.arange(count).repeat_interleave(_PER_WINDOW),
            torch.from_numpy(random.integers(height, size=count * _PER_WINDOW)),
            torch.from_numpy(random.integers(width, size=count * _PER_WINDOW)),
        )
        self.annotated, masks = self._read(archive, annotated, _WINDOWS, random)
        collection = archive.collections[annotated[0].dataset] if annotated else None
        wanted = (
            [c for c in range(len(collection.classes)) if c not in collection.ignore_classes]
            if collection
            else []
        )
        self._halves = [self._choose(masks, wanted, side, random) for side in range(2)]
        known = [set(labels.tolist()) for _, labels in self._halves]
        self.classes = sorted(known[0] & known[1])
        """Classes that both halves show; with fewer than two there is no probe."""
        self._labels = 1 + max((c for shown in known for c in shown), default=0)
        """A class that one half alone shows can be told, too."""

    @torch.no_grad()
    def measure(self, trunk: Trunk) -> dict[str, float]:
        """``bottleneck/rank`` and ``decoder/rank``; with annotated images also ``.../probe`` and ``chance/probe``.

        The trunk is in evaluation mode meanwhile.
        """
        found: dict[str, float] = {}
        training = trunk.training
        trunk.eval()
        try:
            for name, features in _maps(trunk(self.plain.to(self.device))).items():
                found[f"{name}/rank"] = rank_me(self._random.of(features.cpu(), self.size))
            if len(self.classes) > 1:
                for name, features in _maps(trunk(self.annotated.to(self.device))).items():
                    found[f"{name}/probe"] = self._score(features.cpu())
                found["chance/probe"] = 1 / len(self.classes)
        finally:
            trunk.train(training)
        return found

    def _score(self, features: Tensor) -> float:
        """Mean over classes and over both halves as the memory of the other."""
        vectors = [(F.normalize(pixels.of(features, self.size)), labels) for pixels, labels in self._halves]
        shares = []
        for (memory, known), (query, labels) in (vectors, vectors[::-1]):
            told = neighbour_votes(memory, known, query, self._labels)
            shares += [float((told[labels == c] == c).float().mean()) for c in self.classes]
        return sum(shares) / len(shares)

    def _read(
        self, archive: Archive, records: Sequence[ImageRecord], each: int, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Windows (B, C, h, w) and their masks (B, h, w)."""
        height, width = self.size
        channels = self.config.model.in_channels
        images = [np.zeros((0, channels, height, width), np.float32)]
        masks = [np.zeros((0, height, width), np.uint8)]
        for record in records:
            for _ in range(each):
                image, mask = read_window(
                    archive,
                    record,
                    draw_window(record, self.size, random),
                    self.size,
                    channels=channels,
                    standardise=self.config.model.standardise,
                )
                images.append(image[None])
                masks.append(mask[None])
        return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(masks)).long()

    def _choose(
        self, masks: Tensor, wanted: list[int], side: int, random: np.random.Generator
    ) -> tuple[_Pixels, Tensor]:
        """Random pixels of each class in the left (0) or right (1) part of each window, and their classes."""
        width = masks.shape[2]
        columns = torch.arange(width)
        inside = columns < _SIDES[0] * width if side == 0 else columns >= _SIDES[1] * width
        places, labels = [torch.zeros((0, 3), dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
        for window, mask in enumerate(masks):
            for c in wanted:
                found = ((mask == c) & inside).nonzero()
                taken = found[torch.from_numpy(random.permutation(len(found))[:_PER_CLASS])]
                places.append(F.pad(taken, (1, 0), value=window))
                labels.append(torch.full((len(taken),), c))
        return _Pixels(*torch.cat(places).unbind(1)), torch.cat(labels)


def rank_me(vectors: Tensor) -> float:
    """RankMe of vectors (n, C): 1 to min(n, C); NaN if they are not finite."""
    if not bool(vectors.isfinite().all()):
        return float("nan")
    values = torch.linalg.svdvals(vectors.double())
    shares = values / values.sum().clamp_min(1e-12) + 1e-12
    return float(torch.exp(-(shares * shares.log()).sum()))


def neighbour_votes(memory: Tensor, labels: Tensor, query: Tensor, classes: int) -> Tensor:
    """The class of most of the nearest vectors by dot product, int64 (m,); of equals the lowest.

    Args:
        memory: Vectors (n, C).
        labels: Their classes, (n,).
        query: Vectors (m, C).
        classes: Number of classes.
    """
    nearest = (query @ memory.T).topk(min(NEIGHBOURS, len(memory)), dim=1).indices
    return F.one_hot(labels[nearest], classes).sum(dim=1).argmax(dim=1)


def _maps(features: Features) -> dict[str, Tensor]:
    return {"bottleneck": features.bottleneck, "decoder": features.scales[-1]}


def _annotated(archive: Archive, config: PretrainConfig) -> Sequence[ImageRecord]:
    """Annotated images of the training split, of one collection; none if there are none."""
    found = archive.select(
        datasets=config.data.datasets,
        splits=("train", ""),
        has_mask=True,
        without_specimens=config.data.exclude_specimens,
    )
    return [record for record in found if record.dataset == found[0].dataset]

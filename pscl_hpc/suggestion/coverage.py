"""Which images have patches like those of the others, and how much of an archive some images cover.

Shape legend: I images, N patches that stand for the archive, the same number from each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pscl_hpc.seeding import numpy_generator
from pscl_hpc.suggestion.patches import BLUR, ImagePatches, Vectors
from pscl_hpc.suggestion.textures import equal_weights

_TARGETS = 4096
"""About so many patches stand for the archive."""
_FEWEST = 16
"""Of each image, at least."""
_CANDIDATES = 4096
"""At most so many patches of an image are compared with them."""
_ALIKE = 0.95
"""Share of the patches of an image that count as having a similar one elsewhere in the same image."""


@dataclass(frozen=True)
class Nearness:
    """Distances of the archive's patches to the images."""

    distances: npt.NDArray[np.float32]
    """From each patch to the nearest patch of each image, (I, N)."""
    image_of: npt.NDArray[np.int64]
    """The image of each patch, (N,)."""
    weights: npt.NDArray[np.float64]
    """Weight of each patch, (N,), by which rare textures count as much as frequent ones; the sum is 1."""
    radius: float
    """Patches within this distance are similar: 95% of patches have one elsewhere in their own image."""

    def nearest(self, chosen: Sequence[int]) -> npt.NDArray[np.float32]:
        """Distance of each patch to the nearest of the chosen images, (N,)."""
        found: npt.NDArray[np.float32] = self.distances[list(chosen)].min(axis=0)
        return found

    def textures_covered(self, chosen: Sequence[int]) -> float:
        """Share of all textures that the chosen images cover: of all patches, by their weights."""
        return float(self.weights @ (self.nearest(chosen) <= self.radius))

    def covered(self, chosen: Sequence[int]) -> npt.NDArray[np.float64]:
        """Share of each image's patches that are similar to one of the chosen images, (I,)."""
        hits = (self.nearest(chosen) <= self.radius).astype(float)
        return np.bincount(self.image_of, hits) / np.bincount(self.image_of)


def measure(images: Sequence[ImagePatches], seed: int) -> Nearness:
    """Compare a sample of the patches of all images with each image."""
    each = max(_FEWEST, _TARGETS // len(images))
    samples, owners, alone = [], [], []
    for number, image in enumerate(images):
        pick = _sample(len(image.vectors), each, seed, "targets", image.record.id)
        samples.append(image.vectors[pick])
        # A small image has fewer patches: they are repeated, so that every image counts the same.
        owners.append(np.full(each, number))
        alone.append(_elsewhere(image, pick))
    targets = np.concatenate([sample[np.arange(each) % len(sample)] for sample in samples])
    distances = []
    for image in images:
        pick = _sample(len(image.vectors), _CANDIDATES, seed, "candidates", image.record.id)
        distances.append(nearest_distances(targets, image.vectors[pick]))
    owner = np.concatenate(owners)
    near = np.stack(distances)
    near[owner, np.arange(len(owner))] = 0
    inside = np.concatenate(alone)
    if not np.isfinite(inside).any() and len(images) > 1:
        # Of images smaller than two patches: 95% of patches have a similar one in another image.
        others = np.where(np.arange(len(images))[:, None] == owner, np.inf, near)
        inside = others.min(axis=0)
    inside = inside[np.isfinite(inside)]
    radius = float(np.quantile(inside, _ALIKE)) if len(inside) else 0.0
    weights = equal_weights(targets, numpy_generator(seed, "weights"))
    return Nearness(near, owner, weights, radius)


def choose(nearness: Nearness, count: int) -> list[int]:
    """Images one after another, each with the least weighted mean distance of all patches to the images so far.

    This is the greedy solution of the facility location problem; its reduction of the mean distance is at least
    1 - 1/e of the best possible (Nemhauser, Wolsey and Fisher 1978).
    """
    chosen: list[int] = []
    current = np.full(nearness.distances.shape[1], np.inf, np.float32)
    for _ in range(min(count, len(nearness.distances))):
        means = np.minimum(nearness.distances, current) @ nearness.weights
        means[chosen] = np.inf
        chosen.append(int(means.argmin()))
        current = np.minimum(current, nearness.distances[chosen[-1]])
    return chosen


def nearest_distances(vectors: Vectors, others: Vectors) -> npt.NDArray[np.float32]:
    """Distance of each vector (N, d) to the nearest of others (n, d): (N,)."""
    them = torch.from_numpy(others)
    parts = [torch.cdist(part, them).amin(dim=1) for part in torch.split(torch.from_numpy(vectors), 1024)]
    found: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def _elsewhere(image: ImagePatches, pick: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Distance of some patches to the nearest one of the same image that has no pixel in common; inf if none."""
    places = image.places[pick][:, None], image.places[None]
    apart = np.abs(places[0] - places[1]).max(axis=2) >= BLUR
    distances = torch.cdist(torch.from_numpy(image.vectors[pick]), torch.from_numpy(image.vectors)).numpy()
    found: npt.NDArray[np.float32] = np.where(apart, distances, np.inf).min(axis=1)
    return found


def _sample(total: int, count: int, *key: int | str) -> npt.NDArray[np.int64]:
    seed, *rest = key
    assert isinstance(seed, int)
    return np.sort(numpy_generator(seed, *rest).permutation(total)[:count])

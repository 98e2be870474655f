"""Kinds of texture in an archive: clusters of patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import kmeans2

from pscl_hpc.seeding import numpy_generator
from pscl_hpc.suggestion.patches import ImagePatches, Vectors

TEXTURES = 12
_SAMPLE = 20_000
"""About so many patches determine the clusters, the same number from each image."""
_ROUNDS = 30
_CLUSTERS, _CLUSTERINGS = 32, 8
"""Of the weights by which rare textures count as much as frequent ones."""


def find_textures(images: Sequence[ImagePatches], seed: int) -> Vectors:
    """Centres of at most 12 clusters for the picture, (K, d), the most frequent first."""
    random = numpy_generator(seed, "textures")
    each = max(1, _SAMPLE // len(images))
    sample = np.concatenate(
        [image.vectors[random.permutation(len(image.vectors))[:each]] for image in images]
    )
    return clusters(sample, TEXTURES, random)


def clusters(vectors: Vectors, most: int, random: np.random.Generator) -> Vectors:
    """Centres of at most ``most`` clusters of vectors (N, d) by k-means++, (K, d), the largest cluster first."""
    count = min(most, len(np.unique(vectors, axis=0)))
    if count == 1:
        return vectors[:1]
    centres, labels = kmeans2(vectors.astype(np.float64), count, iter=_ROUNDS, minit="++", rng=random)
    members = np.bincount(labels, minlength=count)
    order = np.argsort(-members, kind="stable")[: np.count_nonzero(members)]
    found: Vectors = centres[order].astype(np.float32)
    return found


def equal_weights(vectors: Vectors, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Weights (N,) of vectors (N, d) by which each of 32 clusters counts the same; the sum is 1.

    They are the mean over several clusterings, because one depends on its start.
    """
    weights = np.zeros(len(vectors))
    for _ in range(_CLUSTERINGS):
        labels = nearest_of(vectors, clusters(vectors, _CLUSTERS, random))
        members = np.bincount(labels)
        weights += 1 / (members[labels] * np.count_nonzero(members))
    return weights / _CLUSTERINGS


def labels_of(image: ImagePatches, centres: Vectors) -> npt.NDArray[np.int64]:
    """Texture of each patch of an image, (n,)."""
    return nearest_of(image.vectors, centres)


def nearest_of(vectors: Vectors, centres: Vectors) -> npt.NDArray[np.int64]:
    """The nearest centre of each vector, (N,)."""
    distances = torch.cdist(torch.from_numpy(vectors), torch.from_numpy(centres))
    found: npt.NDArray[np.int64] = distances.argmin(dim=1).numpy()
    return found


def shares(images: Sequence[ImagePatches], centres: Vectors) -> npt.NDArray[np.float64]:
    """Share of each texture in each image, (I, K)."""
    counts = [np.bincount(labels_of(image, centres), minlength=len(centres)) for image in images]
    return np.array([count / count.sum() for count in counts])

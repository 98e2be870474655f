"""Kinds of texture in an archive: clusters of patches, by which the picture explains a choice."""

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


def find_textures(images: Sequence[ImagePatches], seed: int, most: int = TEXTURES) -> Vectors:
    """Centres of at most ``most`` clusters, (K, d), by k-means++, the most frequent first."""
    random = numpy_generator(seed, "textures")
    each = max(1, _SAMPLE // len(images))
    sample = np.concatenate(
        [image.vectors[random.permutation(len(image.vectors))[:each]] for image in images]
    )
    count = min(most, len(np.unique(sample, axis=0)))
    if count == 1:
        return sample[:1]
    centres, labels = kmeans2(sample.astype(np.float64), count, iter=_ROUNDS, minit="++", rng=random)
    members = np.bincount(labels, minlength=count)
    order = np.argsort(-members, kind="stable")[: np.count_nonzero(members)]
    found: Vectors = centres[order].astype(np.float32)
    return found


def labels_of(image: ImagePatches, centres: Vectors) -> npt.NDArray[np.int64]:
    """Texture of each patch of an image, (n,)."""
    distances = torch.cdist(torch.from_numpy(image.vectors), torch.from_numpy(centres))
    found: npt.NDArray[np.int64] = distances.argmin(dim=1).numpy()
    return found


def shares(images: Sequence[ImagePatches], centres: Vectors) -> npt.NDArray[np.float64]:
    """Share of each texture in each image, (I, K)."""
    counts = [np.bincount(labels_of(image, centres), minlength=len(centres)) for image in images]
    return np.array([count / count.sum() for count in counts])

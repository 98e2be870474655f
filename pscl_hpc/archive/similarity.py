"""The visual distance of collections, to help choose a pretraining corpus.

A window of an image is described by the distributions of grey level, gradient magnitude and power over spatial
frequencies, each as a cumulative curve; no trained network is involved. The distance of two collections is the energy
distance of their descriptors (Szekely and Rizzo 2013) as a share of its maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from pscl_hpc.archive.format import ImageRecord
from pscl_hpc.archive.reader import Archive
from pscl_hpc.archive.windows import draw_window
from pscl_hpc.errors import UserError
from pscl_hpc.progress import Progress
from pscl_hpc.seeding import numpy_generator

_IMAGES, _WINDOWS, _SIDE = 64, 4, 128
"""At most: images per collection, windows per image, pixels per side of a window."""
_SMALLEST = 16
_HALVINGS = 20
_LEVELS = np.linspace(0, 1, 18)[1:-1]
_GRADIENTS = np.geomspace(0.004, 0.5, 16)
_FREQUENCIES = np.geomspace(1 / 64, 0.5, 16)
"""Positions on the cumulative curves: grey levels in 0..1, grey levels per pixel, cycles per pixel."""


@dataclass(frozen=True)
class Look:
    """Descriptors of a collection."""

    name: str
    vectors: npt.NDArray[np.float64]
    """(n, 48)."""
    images: npt.NDArray[np.int64]
    """Index of the image of each descriptor, (n,)."""


@dataclass(frozen=True)
class Comparison:
    """Distances of collections, 0 (identical) to 1 (nothing in common)."""

    names: tuple[str, ...]
    distances: npt.NDArray[np.float64]
    """(n, n). The diagonal shows the effect of chance: the mean distance of the two halves of a collection over 20 random
    splits of its images, NaN for a single image."""


def compare(archives: Sequence[Archive], *, splits: Sequence[str], progress: bool = False) -> Comparison:
    """Compare all collections of some archives with each other.

    Args:
        archives: Open archives.
        splits: Splits of the images to compare; the empty name means images without a split.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        UserError: two archives have the same content, fewer than two collections have images in these splits, or images
            are too small.
    """
    found = [
        (archive, name, archive.select(datasets=[name], splits=splits))
        for archive in archives
        for name in archive.collections
    ]
    found = [(archive, name, records) for archive, name, records in found if records]
    if len(found) < 2:
        raise UserError(
            f"fewer than two collections have images in the splits {list(splits)}; add an archive or choose other splits "
            "with --splits"
        )
    paths: dict[str, str] = {}
    for archive in archives:
        if archive.fingerprint in paths:
            raise UserError(
                f"{archive.path}: has the same content as {paths[archive.fingerprint]}; name each archive once"
            )
        paths[archive.fingerprint] = str(archive.path)
    names = [name for _, name, _ in found]
    looks = []
    with Progress("comparing", len(found), unit="collection", show=progress) as bar:
        for archive, name, records in found:
            unique = name if names.count(name) == 1 else f"{archive.path}:{name}"
            looks.append(look_of(archive, records, unique))
            bar.advance()
    distances = np.array([[_own(a) if a is b else distance(a, b) for b in looks] for a in looks])
    return Comparison(tuple(look.name for look in looks), distances)


def look_of(archive: Archive, records: Sequence[ImageRecord], name: str) -> Look:
    """Describe at most 64 evenly spaced images by at most 4 random windows each."""
    steps = np.linspace(0, len(records) - 1, min(_IMAGES, len(records))).round().astype(int)
    vectors, images = [], []
    for record in (records[step] for step in steps):
        if min(record.height, record.width) < _SMALLEST:
            raise UserError(
                f"{record.id} is {record.height} x {record.width} pixels but must have {_SMALLEST} along each side"
            )
        random = numpy_generator(0, "compare", record.id)
        windows = {draw_window(record, (_SIDE, _SIDE), random) for _ in range(_WINDOWS)}
        for window in sorted(windows):
            vectors.append(describe(archive.read_unit(record.index, window, channels=1)[0]))
            images.append(record.index)
    return Look(name, np.stack(vectors), np.array(images, np.int64))


def describe(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Three cumulative curves of an image (h, w) in 0..1: (48,), scaled so that no distance exceeds 1."""
    grey = image.astype(np.float64)
    rows, cols = np.gradient(grey)
    window = np.outer(np.hanning(grey.shape[0] + 2)[1:-1], np.hanning(grey.shape[1] + 2)[1:-1])
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.fftfreq(grey.shape[1])[None, :])
    power[0, 0] = 0
    # An image without contrast has no power; it counts as having all of it at the lowest frequency.
    total = power.sum()
    spectrum = np.array(
        [power[frequency <= limit].sum() / total if total > 1e-12 else 1.0 for limit in _FREQUENCIES]
    )
    curves = (
        _cumulative(grey, _LEVELS),
        _cumulative(np.hypot(rows, cols), _GRADIENTS),
        spectrum,
    )
    joined: npt.NDArray[np.float64] = np.concatenate(curves)
    return joined / math.sqrt(len(joined))


def distance(a: Look, b: Look) -> float:
    """Energy distance as a share of its maximum: 1 - (mean distance within) / (mean distance between), at least 0.

    Within a collection, windows of the same image are not compared.
    """
    between = float(cdist(a.vectors, b.vectors).mean())
    if between == 0:
        return 0.0
    return max(0.0, 1.0 - (_within(a) + _within(b)) / (2 * between))


def _within(look: Look) -> float:
    """Mean distance of windows of different images, or of all windows if there is only one image."""
    distances = cdist(look.vectors, look.vectors)
    other = look.images[:, None] != look.images[None, :]
    if not other.any():
        other = ~np.eye(len(distances), dtype=bool)
    return float(distances[other].mean()) if other.any() else 0.0


def _own(look: Look) -> float:
    images = np.unique(look.images)
    if len(images) < 2:
        return float("nan")
    random = numpy_generator(0, "halves", look.name)
    found = []
    for _ in range(_HALVINGS):
        half = np.isin(look.images, random.permutation(images)[: len(images) // 2])
        found.append(
            distance(*(Look(look.name, look.vectors[part], look.images[part]) for part in (half, ~half)))
        )
    return float(np.mean(found))


def _cumulative(values: npt.NDArray[np.float64], limits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    below: npt.NDArray[np.float64] = (
        np.searchsorted(np.sort(values.ravel()), limits, side="right") / values.size
    )
    return below

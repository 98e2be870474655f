"""Candidate pairs of similar pictures in about n log n: random projections of their low frequencies, sorted.

The sign of a random projection differs for two vectors with the angle a in a share a / pi of the projections (Charikar
2002). A signature is 256 such signs of the low cosine frequencies. Signatures are sorted many times, each time by another
64 of the bits; pictures that look alike are neighbours in some of the orders. In a cosine transform a reflection changes
signs and a transposition swaps (u, v) with (v, u), so signatures of all eight orientations follow from one transform.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_LOW = 16
"""Frequencies along each axis."""
_BYTES = 32
"""Of a signature."""
_ORDERS = 24
_NEIGHBOURS = 4
"""Compared on either side in each order."""
_MOST_DIFFERENT = 48
"""Bits. Signatures of pictures with a correlation of 0.98 differ in 16 of 256 bits, with a standard deviation of 4."""
_PART = 1 << 15

Signatures = npt.NDArray[np.uint8]
ORIENTATIONS = tuple((mirrored, turns) for mirrored in (False, True) for turns in range(4))
"""(mirrored first, quarter turns by ``numpy.rot90``), in the order of the signatures."""


def turned(picture: npt.NDArray[np.float32], orientation: int) -> npt.NDArray[np.float32]:
    """Pictures (..., h, w) in one of the orientations."""
    mirrored, turns = ORIENTATIONS[orientation]
    return np.rot90(picture[..., ::-1] if mirrored else picture, turns, axes=(-2, -1))


def _oriented(low: npt.NDArray[np.float32], orientation: int) -> npt.NDArray[np.float32]:
    """The low frequencies (n, 16, 16) of the turned pictures."""
    mirrored, turns = ORIENTATIONS[orientation]
    signs = np.where(np.arange(_LOW) % 2, -1, 1).astype(np.float32)
    if mirrored:
        low = low * signs
    for _ in range(turns):  # a quarter turn is a transposition, then upside down
        low = np.swapaxes(low, 1, 2) * signs[:, None]
    return low


def signatures(pictures: npt.NDArray[np.float32]) -> Signatures:
    """Of the pictures (n, s, s) in the eight orientations: (8, n, 32)."""
    from scipy.fft import dctn  # here, because it takes long to import

    directions = np.random.default_rng(0).normal(size=(_LOW * _LOW, 8 * _BYTES)).astype(np.float32)
    found = np.empty((len(ORIENTATIONS), len(pictures), _BYTES), np.uint8)
    low = dctn(pictures, axes=(1, 2), norm="ortho")[:, :_LOW, :_LOW]
    for orientation in range(len(ORIENTATIONS)):
        vectors = _oriented(low, orientation).reshape(len(low), -1)
        found[orientation] = np.packbits(vectors @ directions > 0, axis=1)
    return found


def candidates(found: Signatures) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs (m, 2) of pictures that may look alike, once for each of 24 orders, the smaller index first.

    Each picture is compared with eight neighbours in each order and orientation, so the time does not depend on how many
    pictures look alike. A pair may come in several orders.
    """
    random = np.random.default_rng(1)
    plain = found[0]
    count = len(plain)
    for _ in range(_ORDERS):
        columns = random.permutation(_BYTES)[:8]
        order = np.argsort(_keys(plain, columns))
        keys = _keys(plain, columns)[order]
        pairs = []
        for orientation, oriented in enumerate(found):
            own = _keys(oriented, columns)
            seconds = np.argsort(own)  # sorted queries are found many times faster
            places = np.searchsorted(keys, own[seconds])
            for step in range(-_NEIGHBOURS, _NEIGHBOURS + (orientation == 0)):
                at = places + step
                inside = (at >= 0) & (at < count)
                first, second = order[at[inside]], seconds[inside]
                other = first != second
                pairs.append(_alike(plain, oriented, first[other], second[other]))
        joined = np.sort(np.concatenate(pairs), axis=1)
        single = np.unique(joined[:, 0] * count + joined[:, 1])
        yield np.stack([single // count, single % count], axis=1)


def _keys(found: npt.NDArray[np.uint8], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(found[:, columns]).view(">u8")[:, 0].astype(np.uint64)


def _alike(
    plain: npt.NDArray[np.uint8],
    oriented: npt.NDArray[np.uint8],
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The pairs whose signatures differ little."""
    kept = []
    words, others = plain.view(np.uint64), oriented.view(np.uint64)
    for start in range(0, len(first), _PART):
        one, two = first[start : start + _PART], second[start : start + _PART]
        different = np.bitwise_count(words[one] ^ others[two]).sum(axis=1, dtype=np.int64)
        near = different <= _MOST_DIFFERENT
        kept.append(np.stack([one[near], two[near]], axis=1))
    return np.concatenate(kept) if kept else np.empty((0, 2), np.int64)

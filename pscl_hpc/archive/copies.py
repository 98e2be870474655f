"""Groups of images that are copies of one another, as findings of ``archive check``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.duplicates import Thumbnails, components, similar_pairs
from pscl_hpc.archive.reader import Archive

MOST_GROUPS = 1000
"""Findings about copies; of more groups only the number is given."""
MOST_IMAGES = 100
"""Images of a group that are listed."""
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One problem of an archive."""

    kind: str
    """``"checksum"``, ``"mask"``, ``"reference"``, ``"duplicate"``, ``"leak"`` (a duplicate in another split),
    ``"specimen"`` or ``"split"``."""
    images: tuple[str, ...]
    """Ids; of a group of copies at most 100."""
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def copies(archive: Archive, thumbnails: Thumbnails) -> Iterator[Finding]:
    """One finding for each group of copies, leaks first."""
    how: dict[tuple[int, int], str] = dict.fromkeys(_same_pixels(archive), "the same pixels")
    for found in similar_pairs(thumbnails):
        how.setdefault((found.first, found.second), f"{found.turn}, correlation {found.correlation:.3f}")
    groups = _groups(len(archive), list(how))
    splits = _splits(archive)
    leaks = [group for group in groups if len({splits[index] for index in group} - {""}) > 1]
    others = [group for group in groups if len({splits[index] for index in group} - {""}) <= 1]
    for kind, chosen in (("leak", leaks), ("duplicate", others)):
        for group in chosen[:MOST_GROUPS]:
            yield _finding(archive, kind, group, splits, how)
        if len(chosen) > MOST_GROUPS:
            rest = len(chosen) - MOST_GROUPS
            yield Finding(kind, (), f"{rest} more groups of copies; correct these, then check again")


def _finding(
    archive: Archive, kind: str, group: list[int], splits: list[str], how: dict[tuple[int, int], str]
) -> Finding:
    leading: list[int] = []
    if kind == "leak":  # one image of each split first
        first = {splits[index]: index for index in reversed(group)}
        leading = sorted(index for split, index in first.items() if split)
        group = [*leading, *(index for index in group if index not in leading)]
    names = [archive.records[index].id for index in group[:MOST_IMAGES]]
    shown = " and ".join(names[:2])
    if len(group) > 2:
        more = len(group) - _SHOWN
        shown = ", ".join(names[:_SHOWN]) + (f" and {more} more" if more else "")
    where = f" ({' and '.join(splits[index] for index in leading)})" if leading else ""
    reason = f": {how[min(group), max(group)]}" if len(group) == 2 else ""
    return Finding(kind, tuple(names), f"{shown} are copies{where}{reason}")


def _splits(archive: Archive) -> list[str]:
    names, codes = archive.coded("split")
    return [names[code] for code in codes]


def _same_pixels(archive: Archive) -> Iterator[tuple[int, int]]:
    """(first image, another image) with the same pixels."""
    sizes = np.stack([archive.column("height"), archive.column("width")], axis=1)
    digests = archive.column("pixel_checksum")
    keys = np.concatenate(
        [digests, np.ascontiguousarray(sizes).view(np.uint8).reshape(len(sizes), -1)], axis=1
    )
    _, first, inverse = np.unique(
        np.ascontiguousarray(keys).view(f"V{keys.shape[1]}")[:, 0], return_index=True, return_inverse=True
    )
    for index in np.flatnonzero(first[inverse] != np.arange(len(keys))):
        yield int(first[inverse[index]]), int(index)


def _groups(count: int, pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Connected images, at least two each, by their first image."""
    if not pairs:
        return []
    edges: npt.NDArray[np.int64] = np.array(pairs)
    labels = components(edges, count)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in np.unique(edges):
        groups[int(labels[index])].append(int(index))
    return sorted(groups.values())

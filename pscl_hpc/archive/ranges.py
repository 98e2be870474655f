"""Intensity ranges of the images of a collection together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

from pscl_hpc.archive.format import Row, parse_pool
from pscl_hpc.archive.options import options_from_json
from pscl_hpc.archive.parts import Pick

_KINDS = {"uint8": "8 bits", "uint16": "16 bits", "float32": "floating point"}


def with_common_range(picks: Sequence[Pick], existing: Iterable[Row]) -> list[Pick]:
    """The picks; those built with ``--range collection`` have one intensity range for each collection and type.

    It is that of the images in the archive, or else reaches from the smallest lower to the largest upper end of all.
    """
    ranges: dict[tuple[str, str], tuple[float, float]] = {}
    for row in existing:
        if _common(row):
            ranges.setdefault((row.dataset, row.pool), (row.low, row.high))
    fixed = frozenset(ranges)
    for row, _ in picks:
        key = (row.dataset, row.pool)
        if _common(row) and key not in fixed and row.low < row.high:
            low, high = ranges.get(key, (row.low, row.high))
            ranges[key] = min(low, row.low), max(high, row.high)
    found = []
    for row, part in picks:
        low, high = (
            ranges.get((row.dataset, row.pool), (row.low, row.high)) if _common(row) else (row.low, row.high)
        )
        found.append((replace(row, low=low, high=high), part))
    return found


def _common(row: Row) -> bool:
    options = options_from_json(row.ingest)
    return options is not None and options.common_range and not row.pool.startswith("uint8")


def mixed_types(rows: Iterable[tuple[Row, int]], changed: Set[str]) -> list[str]:
    """Warnings about collections with images of several types, or in colour and grey.

    Args:
        rows: Images, each with the number of images that are alike.
        changed: Collections to which images were added.
    """
    types: dict[str, Counter[str]] = {}
    colours: dict[str, Counter[int]] = {}
    for row, count in rows:
        dtype, channels = parse_pool(row.pool)
        types.setdefault(row.dataset, Counter())[dtype] += count
        colours.setdefault(row.dataset, Counter())[channels] += count
    found = []
    for name, counts in types.items():
        if name in changed and len(counts) > 1:
            shown = ", ".join(f"{count} of {_KINDS[dtype]}" for dtype, count in sorted(counts.items()))
            found.append(
                f"{name}: its images have several types ({shown}); 8 bits are scaled from 0 to 255 and others by their own "
                "intensity range, so the same field looks different; export all images in the same way"
            )
    for name, channels_of in colours.items():
        if name in changed and len(channels_of) > 1:
            found.append(
                f"{name}: {channels_of[3]} of its images are in colour and {channels_of[1]} are grey; networks with one "
                "channel, the default, see the brightness only, and --colour luma packs it"
            )
    return found

"""How the images that a run learnt from were packed: kept in its record, and chosen for files that it is to segment.

A file is to be scaled, coloured and cropped like the annotated images; what a network makes of another scale is worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pscl_hpc.archive import ImageRecord
from pscl_hpc.archive.options import IngestOptions, differing, options_from_tree, options_to_tree
from pscl_hpc.errors import UserError
from pscl_hpc.runs import RunFolder

ENTRY = "packing"
"""Key in run.json."""
_FIELDS = ("percentiles", "luma", "crop_bottom")


def packing_record(annotated: Iterable[ImageRecord], unlabelled: Iterable[ImageRecord]) -> dict[str, Any]:
    """The entry of run.json: the different options of the images learnt from, null for images without a record."""
    return {"annotated": _trees(annotated), "unlabelled": _trees(unlabelled)}


@dataclass
class Packing:
    """The options for files, and what is to be said of them."""

    run: str
    options: IngestOptions
    unsure: frozenset[str] = frozenset()
    """Fields that no record and no flag tells: they have their defaults, or what a part of the images has."""
    notices: list[str] = field(default_factory=list)
    _doubts: dict[str, list[str]] = field(default_factory=dict)

    def doubt(self, source: str, fields: Iterable[str]) -> None:
        """Note that unsure fields could have made another image of a file."""
        for name in fields:
            sources = self._doubts.setdefault(name, [])
            if source not in sources:
                sources.append(source)

    def all_notices(self) -> list[str]:
        """Sentences for the user, doubts included; none where nothing is odd."""
        flags = self.options.flags()
        found = list(self.notices)
        for name in _FIELDS:
            if sources := self._doubts.get(name):
                others = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
                found.append(
                    f"{self.run} does not record how its images were packed: {flags[name]} was taken for "
                    f"{sources[0]}{others}; give {flags[name].split()[0]} if 'archive build' had another"
                )
        return found


def choose_packing(folder: RunFolder, given: Mapping[str, Any]) -> Packing:
    """How files are packed for a run: as the flags say, else as its annotated images were, else by default.

    Args:
        folder: A fine-tuning run.
        given: Fields of :class:`IngestOptions` that the user has set.

    Raises:
        UserError: the annotated images differ in a field that is not given, or the record is damaged.
    """
    wanted = [name for name in _FIELDS if name not in given]
    annotated, unlabelled = _recorded(folder) if wanted else ([], [])
    known = [options for options in annotated if options is not None]
    chosen = replace(known[0] if known else IngestOptions(), **given)
    for name in wanted:
        flags = _flags(known, name)
        if len(flags) > 1:
            raise UserError(
                f"{folder.path}: the annotated images that it learnt from were packed with different options "
                f"({' and '.join(flags)}); say with {flags[0].split()[0]} how the files are to be packed"
            )
    packing = Packing(str(folder.path), chosen)
    if not known or None in annotated:
        packing.unsure = frozenset(wanted)
    others = [options for options in unlabelled if options is not None]
    for name in wanted:
        mine = chosen.flags()[name]
        if known and (differing := [flag for flag in _flags(others, name) if flag != mine]):
            packing.notices.append(
                f"files are packed with {mine} like the annotated images of {folder.path}, which also learnt from "
                f"images packed with {' and '.join(differing)}"
            )
    return packing


def packed_unlike(folder: RunFolder, images: Iterable[ImageRecord]) -> list[str]:
    """Notices on images of an archive that were packed with other options than the annotated images of a run.

    Nothing is said where either is not recorded.
    """
    try:
        known = [options for options in _recorded(folder)[0] if options is not None]
    except UserError:
        return []  # a damaged record stops those who need it
    unlike: dict[str, dict[str, list[str]]] = {}
    for image in images:
        if image.ingest is None or not known:
            continue
        fields = [differing(image.ingest, one, dtype=image.dtype, channels=image.channels) for one in known]
        for name in _FIELDS:
            if all(name in found for found in fields):
                unlike.setdefault(name, {}).setdefault(image.ingest.flags()[name], []).append(image.id)
    notices = []
    for name, flags in unlike.items():
        for flag, ids in flags.items():
            more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
            notices.append(
                f"{ids[0]}{more}: packed with {flag}, but the annotated images of {folder.path} with "
                f"{' and '.join(_flags(known, name))}; what it makes of them may be worse"
            )
    return notices


def _flags(options: Iterable[IngestOptions], name: str) -> list[str]:
    return list(dict.fromkeys(item.flags()[name] for item in options))


def _trees(records: Iterable[ImageRecord]) -> list[dict[str, Any] | None]:
    found = dict.fromkeys(record.ingest for record in records)
    return [options_to_tree(options) if options is not None else None for options in found]


def _recorded(folder: RunFolder) -> tuple[list[IngestOptions | None], list[IngestOptions | None]]:
    """Options of the annotated and of the unlabelled images; empty for a run from before they were recorded."""
    entry = folder.record.get(ENTRY)
    if entry is None:
        return [], []
    try:
        if not isinstance(entry, dict) or entry.keys() != {"annotated", "unlabelled"}:
            raise ValueError("it does not have the entries annotated and unlabelled")
        return _options(entry["annotated"]), _options(entry["unlabelled"])
    except ValueError as error:
        raise UserError(
            f"{folder.path}/run.json: '{ENTRY}' is damaged ({error}); restore it from a copy, or give --percentiles, "
            "--colour and --crop-bottom"
        ) from None


def _options(trees: object) -> list[IngestOptions | None]:
    if not isinstance(trees, list):
        raise ValueError("it does not hold lists")
    return [None if tree is None else options_from_tree(tree) for tree in trees]

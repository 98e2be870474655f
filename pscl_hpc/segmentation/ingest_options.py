"""Ingest options of a run's training images: recorded in run.json, and used again for the files that it segments.

Files should be scaled, converted to grey and cropped as the annotated images were: networks are sensitive to intensity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pscl_hpc.archive import ImageRecord
from pscl_hpc.archive.options import IngestOptions, differing, options_from_tree, options_to_tree
from pscl_hpc.errors import UserError
from pscl_hpc.runs import RunFolder

KEY = "ingest_options"
"""Key in run.json."""
RANGES_KEY = "intensity_ranges"
"""Key in run.json: stored type of the annotated images -> smallest and largest intensity of their ranges."""
SCALE_KEY = "um_per_pixel"
"""Key in run.json: smallest and largest micrometres per pixel of the annotated images; absent if unknown."""
MAGNIFICATION_KEY = "magnification"
"""Key in run.json: the same for their magnifications."""
UNSEEN_KEY = "unseen_classes"
"""Key in run.json: classes of which no annotated image has a pixel; absent if there are none."""
_SCALE_RATIO = 1.5
"""A warning is given from this ratio of two scales."""
_RATIO = 4.0
"""A warning is given from this ratio of two intensity ranges, 2 bits."""
_NAMES = {"uint8": "8-bit", "uint16": "16-bit", "float32": "floating-point"}
_ALWAYS = frozenset({"percentiles", "luma", "crop_bottom"})
"""Fields of which every record has a value."""
_FIELDS = ("percentiles", "luma", "crop_bottom", "page", "common_range")


def options_record(annotated: Iterable[ImageRecord], unlabelled: Iterable[ImageRecord]) -> dict[str, Any]:
    """Entries for run.json: the distinct options of the training images, null for images whose options are unknown, and
    the intensity ranges of the annotated ones."""
    annotated = list(annotated)
    ranges: dict[str, list[float]] = {}
    for record in annotated:
        low, high = ranges.get(record.dtype, (record.low, record.high))
        ranges[record.dtype] = [min(low, record.low), max(high, record.high)]
    scales = {
        SCALE_KEY: [record.um_per_pixel for record in annotated if record.um_per_pixel],
        MAGNIFICATION_KEY: [record.magnification for record in annotated if record.magnification],
    }
    return {
        KEY: {"annotated": _trees(annotated), "unlabelled": _trees(unlabelled)},
        RANGES_KEY: ranges,
        **{key: [min(values), max(values)] for key, values in scales.items() if values},
    }


@dataclass
class FileOptions:
    """The options for image files, and warnings about them."""

    run: str
    options: IngestOptions
    guessed: frozenset[str]
    """Fields that no flag gives and that are unknown for at least one annotated image."""
    _warnings: list[str] = field(default_factory=list)
    _affected: dict[str, list[str]] = field(default_factory=dict)

    def note(self, source: str, fields: Iterable[str]) -> None:
        """Note that other values of these guessed fields would change how a file is read."""
        for name in fields:
            sources = self._affected.setdefault(name, [])
            if source not in sources:
                sources.append(source)

    def warnings(self) -> list[str]:
        """Sentences for the user, including those on guessed fields that affected a file."""
        found = list(self._warnings)
        for name, flag in self.options.flags().items():
            if sources := self._affected.get(name):
                found.append(
                    f"{self.run}: its record does not contain the ingest options of all annotated images; used {flag} "
                    f"for {_first(sources)}; pass {flag.split()[0]} if 'archive build' had another value"
                )
        return found


def choose_options(folder: RunFolder, given: Mapping[str, Any]) -> FileOptions:
    """The options for files: the given values, else those of the run's annotated images, else the defaults.

    Args:
        folder: A fine-tuning run.
        given: Fields of :class:`IngestOptions` that the user has set.

    Raises:
        UserError: the annotated images differ in a field that is not given, or the record is damaged.
    """
    missing = [name for name in _FIELDS if name not in given]
    annotated: list[IngestOptions | None] = []
    unlabelled: list[IngestOptions | None] = []
    if missing:
        try:
            annotated, unlabelled = _recorded(folder)
        except UserError:
            if not _ALWAYS.issubset(given):
                raise
    known = [options for options in annotated if options is not None]
    options = replace(known[0] if known else IngestOptions(), **given)
    complete = bool(known) and None not in annotated
    chosen = FileOptions(str(folder.path), options, frozenset(() if complete else missing))
    for name in missing:
        flags = _flags(known, name)
        if len(flags) > 1:
            raise UserError(
                f"{folder.path}: its annotated images have different ingest options ({' and '.join(flags)}); pass "
                f"{flags[0].split()[0]} to choose one"
            )
        others = [flag for flag in _flags(unlabelled, name) if flag not in flags]
        if flags and others:
            chosen._warnings.append(
                f"files are read with {flags[0]}, as the annotated images of {folder.path} were; its unlabelled images "
                f"also had {' and '.join(others)}"
            )
    return chosen


def mismatch_warnings(folder: RunFolder, images: Iterable[ImageRecord]) -> list[str]:
    """Warnings about archive images whose ingest options differ from those of a run's annotated images.

    Images and runs with unknown options give no warning.
    """
    try:
        known = [options for options in _recorded(folder)[0] if options is not None]
    except UserError:
        return []  # Images of an archive do not need the record.
    mismatches: dict[tuple[str, str], list[str]] = {}
    for image in images:
        if image.ingest is None or not known:
            continue
        fields = [differing(image.ingest, one, dtype=image.dtype, channels=image.channels) for one in known]
        for name in set(_FIELDS).intersection(*fields):
            mismatches.setdefault((name, image.ingest.flags()[name]), []).append(image.id)
    return [
        f"{_first(ids)}: built with {flag}, but the annotated images of {folder.path} with "
        f"{' and '.join(_flags(known, name))}; predictions may be worse"
        for (name, flag), ids in sorted(mismatches.items(), key=lambda item: _FIELDS.index(item[0][0]))
    ]


def intensity_warnings(folder: RunFolder, images: Iterable[tuple[str, ImageRecord]]) -> list[str]:
    """Warnings about images whose bit depth or intensity range differs from that of a run's annotated images.

    Args:
        images: name for the user, and record; runs without the ranges give no warning.
    """
    known = folder.record.get(RANGES_KEY)
    if not isinstance(known, dict) or not known:
        return []
    trained = " and ".join(_NAMES.get(dtype, str(dtype)) for dtype in known)
    found: dict[str, list[str]] = {}
    for name, image in images:
        kind, text = _NAMES[image.dtype], ""
        if image.dtype not in known:
            text = f"{kind}, but the annotated images of {folder.path} are {trained}; give the model files of that depth"
        elif image.dtype != "uint8" and image.high > image.low:
            low, high = known[image.dtype]
            ratio = (image.high - image.low) / max(high - low, 1e-30)
            if not 1 / _RATIO < ratio < _RATIO:
                text = (
                    f"{kind} with intensities {image.low:g} to {image.high:g}, but those of the annotated images of "
                    f"{folder.path} are {low:g} to {high:g}; check that both were exported in the same way"
                )
        if text and name not in found.setdefault(text, []):
            found[text].append(name)
    return [f"{_first(names)}: {text}; predictions may be worse" for text, names in found.items()]


def colour_warnings(folder: RunFolder, images: Iterable[tuple[str, ImageRecord]]) -> list[str]:
    """Warnings about images in colour for a run whose network sees grey levels only."""
    names = list(dict.fromkeys(name for name, image in images if image.channels == 3))
    if not names:
        return []
    return [
        f"{_first(names)}: in colour, but {folder.path} was trained on grey images and sees the brightness only"
    ]


def unseen_classes(folder: RunFolder) -> list[str]:
    """Classes of which a run has seen no pixel."""
    unseen = folder.record.get(UNSEEN_KEY)
    return [str(name) for name in unseen] if isinstance(unseen, list) else []


def model_warnings(folder: RunFolder, images: Iterable[tuple[str, ImageRecord]]) -> list[str]:
    """Warnings about classes that a run has never seen, and about images of another magnification.

    Args:
        images: name for the user, and record; images and runs without a scale give no warning. The magnification counts
            where micrometres per pixel are not known of both.
    """
    found = []
    if unseen := unseen_classes(folder):
        names = " and ".join(unseen)
        found.append(f"{folder.path} was trained without a pixel of {names}, so it is not predicted")
    scale, magnification = (_limits(folder, key) for key in (SCALE_KEY, MAGNIFICATION_KEY))
    others: dict[str, list[str]] = {}
    for name, image in images:
        text = ""
        if scale and image.um_per_pixel:
            text = _differs(folder, image.um_per_pixel, scale, "{:.4g} um per pixel")
        elif magnification and image.magnification:
            text = _differs(folder, image.magnification, magnification, "a magnification of {:.4g}")
        if text:
            others.setdefault(text, []).append(name)
    return found + [
        f"{_first(names)}: {text}; the structure appears at another size, so predictions may be worse"
        for text, names in others.items()
    ]


def _limits(folder: RunFolder, key: str) -> tuple[float, float] | None:
    """The smallest and the largest value of the annotated images of a run."""
    entry = folder.record.get(key)
    return (float(entry[0]), float(entry[1])) if isinstance(entry, list) and len(entry) == 2 else None


def _differs(folder: RunFolder, value: float, limits: tuple[float, float], text: str) -> str:
    """What is different if a value is far from the limits."""
    low, high = limits
    if low / _SCALE_RATIO < value < high * _SCALE_RATIO:
        return ""
    trained = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    return f"{text.format(value)}, but the annotated images of {folder.path} have {trained}"


def fixed_ranges(folder: RunFolder, options: IngestOptions) -> dict[str, tuple[float, float]]:
    """Stored type -> intensity range of the annotated images, if files are read with ``--range collection``."""
    known = folder.record.get(RANGES_KEY)
    if not options.common_range or not isinstance(known, dict):
        return {}
    return {dtype: (float(low), float(high)) for dtype, (low, high) in known.items() if dtype != "uint8"}


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _flags(options: Iterable[IngestOptions | None], name: str) -> list[str]:
    """The distinct flags of ``archive build`` that set a field."""
    return list(dict.fromkeys(one.flags()[name] for one in options if one is not None))


def _trees(records: Iterable[ImageRecord]) -> list[dict[str, Any] | None]:
    distinct = dict.fromkeys(record.ingest for record in records)
    return [options_to_tree(options) if options is not None else None for options in distinct]


def _recorded(folder: RunFolder) -> tuple[list[IngestOptions | None], list[IngestOptions | None]]:
    """Distinct options of the annotated and of the unlabelled images; UserError when the record is damaged."""
    try:
        entry = folder.record.get(KEY)
        if not isinstance(entry, dict) or entry.keys() != {"annotated", "unlabelled"}:
            raise ValueError("it must be an object with the keys annotated and unlabelled")
        return _options(entry["annotated"]), _options(entry["unlabelled"])
    except ValueError as error:
        raise UserError(
            f"{folder.path}/run.json: '{KEY}' is missing or damaged ({error}); restore run.json from a copy, or pass "
            "--percentiles, --colour and --crop-bottom"
        ) from None


def _options(trees: object) -> list[IngestOptions | None]:
    if not isinstance(trees, list):
        raise ValueError("its values must be lists")
    return [None if tree is None else options_from_tree(tree) for tree in trees]

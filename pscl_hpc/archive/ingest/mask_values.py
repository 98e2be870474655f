"""Which class a value or a colour in a mask file means: ``--mask-values`` and ``mask_values`` in ``splits.json``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pscl_hpc.archive.format import IGNORE_INDEX, Collection
from pscl_hpc.errors import UserError

Key = int | str
"""A value of the file, a colour ``#rrggbb``, :data:`TRANSPARENT` or :data:`OTHER`."""
IGNORE = "ignore"
"""Class name of pixels that are not annotated."""
TRANSPARENT = "transparent"
"""Pixels whose alpha is 0."""
OTHER = "*"
"""All values that are not listed, as in masks that number the particles."""


def parse_mask_values(pairs: Sequence[tuple[str, object]], where: str) -> dict[Key, str]:
    """Value or colour of a mask file -> class name or :data:`IGNORE`; UserError names ``where``."""
    found: dict[Key, str] = {}
    for text, name in pairs:
        key = _key(text.strip())
        if key is None:
            raise UserError(
                f"{where}: {text.strip()!r} is not a value of a mask; give a whole number, a colour such as #ff0000, "
                f"'{TRANSPARENT}' or '{OTHER}'"
            )
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: {text.strip()} needs the name of a class, or '{IGNORE}', not {name!r}")
        if key in found:
            raise UserError(f"{where}: {text.strip()} appears twice; keep one of them")
        found[key] = name.strip()
    if by_colour(found) and any(isinstance(key, int) for key in found):
        raise UserError(f"{where}: it has both values and colours; give one kind")
    return found


def _key(text: str) -> Key | None:
    if re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        return int(text)
    if match := re.fullmatch(r"#([0-9a-f]{3}|[0-9a-f]{6})", text.lower(), re.ASCII):
        digits = match[1] if len(match[1]) == 6 else "".join(2 * digit for digit in match[1])
        return f"#{digits}"
    return text if text in (TRANSPARENT, OTHER) else None


def by_colour(names: Iterable[Key]) -> bool:
    """Whether classes are given by colours rather than by values."""
    return any(isinstance(key, str) and key != OTHER for key in names)


def classes_of_values(names: Mapping[Key, str]) -> tuple[str, ...]:
    """The class names in ``--mask-values``, in the order of their first appearance."""
    return tuple(dict.fromkeys(name for name in names.values() if name != IGNORE))


def class_indices(names: Mapping[Key, str], collection: Collection) -> dict[Key, int]:
    """Value or colour of a mask file -> class index of the collection; UserError for an unknown class name."""
    classes = collection.classes
    if IGNORE in classes:
        raise UserError(f"--mask-values: {collection.name} has a class named '{IGNORE}'; rename the class")
    for value, name in names.items():
        if name not in (*classes, IGNORE):
            raise UserError(
                f"--mask-values: {value}={name} is not a class of {collection.name} ({', '.join(classes)}); "
                f"correct the name, or write '{IGNORE}' for pixels that are not annotated"
            )
    return {value: IGNORE_INDEX if name == IGNORE else classes.index(name) for value, name in names.items()}


def scribble_names(classes: Sequence[str]) -> dict[Key, str]:
    """The meaning of values in scribbles: 0 is not annotated, 1 is the first class, 2 the second and so on."""
    return {0: IGNORE, **dict(enumerate(classes, 1))}


def suggestion(keys: Sequence[Key], classes: Sequence[str]) -> str:
    """``--mask-values`` with these values or colours, to type; the classes are in the order of their list."""
    names = [*classes, *(f"CLASS{number}" for number in range(len(classes) + 1, len(keys) + 1))]
    pairs = ",".join(f"{key}={name}" for key, name in zip(keys, names, strict=False))
    quote = '"' if by_colour(keys) else ""
    return f"--mask-values {quote}{pairs}{quote}"

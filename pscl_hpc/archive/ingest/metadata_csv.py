"""The CSV file of ``archive build --metadata``: one line per image.

Columns: ``file`` (required) and any of ``mask, dataset, specimen, production_batch, alloy, magnification,
um_per_pixel, split, reference``; ``condition`` is an alias of ``production_batch``. An empty cell changes nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pscl_hpc.archive.ingest.csv_text import parse_number, read_table
from pscl_hpc.archive.ingest.folders import name_on_disk
from pscl_hpc.archive.ingest.splits import SPLIT_NAMES, closest_key
from pscl_hpc.errors import UserError
from pscl_hpc.files import nfc

TEXTS = ("split", "specimen", "production_batch", "alloy")
NUMBERS = ("magnification", "um_per_pixel")
COLUMNS = ("file", "mask", "dataset", "reference", *TEXTS, *NUMBERS)
_ALIAS = "condition"
_YES, _NO = ("1", "true", "yes", "x"), ("", "0", "false", "no")


@dataclass(frozen=True)
class Line:
    """One line of the file."""

    where: str
    """File and line number, for errors."""
    cells: dict[str, str]
    separator: str = ","
    """Of the columns; it tells how numbers are written."""

    def text(self, column: str) -> str:
        return self.cells.get(column, "")

    def number(self, column: str) -> float:
        try:
            return parse_number(self.text(column), column, self.separator)
        except ValueError as error:
            raise UserError(f"{self.where}: {column} is {self.text(column)!r} but {error}") from None

    def flag(self, column: str) -> bool:
        value = self.text(column).lower()
        if value not in _YES + _NO:
            raise UserError(f"{self.where}: {column} is {self.text(column)!r}; write yes or no")
        return value in _YES


@dataclass(frozen=True)
class MetadataFile:
    """The parsed file."""

    path: Path
    lines: tuple[Line, ...]
    not_used: tuple[str, ...] = ()
    """Columns with other names."""
    notes: tuple[str, ...] = ()

    @staticmethod
    def read(path: Path) -> MetadataFile:
        """Parse the file; UserError if it cannot be read, lacks a column or has an unknown one."""
        names, rows, separator = read_table(path)
        plain = [name.lower().replace(" ", "_") for name in names]
        names = [
            known if known in (*COLUMNS, _ALIAS) else name for name, known in zip(names, plain, strict=True)
        ]
        unknown = []
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{path} has the column {name!r} twice; keep one of them")
            if name not in (*COLUMNS, _ALIAS):
                if near := difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.75):
                    raise UserError(f"{path} has an unknown column {name!r}; did you mean '{near[0]}'?")
                unknown.append(name)
        if "file" not in names:
            raise UserError(f"{path} has no column 'file'; its first line must list the columns")
        lines = []
        for number, row in rows:
            where = f"{path}, line {number}"
            cells = dict(zip(names, row, strict=True))
            if not cells["file"]:
                raise UserError(f"{where}: the column 'file' is empty")
            batch, alias = cells.get("production_batch", ""), cells.pop(_ALIAS, "")
            if batch and alias and batch != alias:
                raise UserError(
                    f"{where}: production_batch is {batch!r} but its alias {_ALIAS} is {alias!r}; keep one"
                )
            cells["production_batch"] = batch or alias
            split = cells.get("split", "")
            if split.lower() in SPLIT_NAMES:
                cells["split"] = split.lower()
            elif near_split := closest_key(split):
                raise UserError(f"{where}: split is {split!r}; did you mean '{near_split}'?")
            lines.append(Line(where, cells, separator))
        splits = {line.text("split") for line in lines}
        others = sorted(
            name for name in splits if name not in ("", *SPLIT_NAMES) and not name.startswith("test")
        )
        note = f"images of the split {' and '.join(others)} are neither trained on nor scored unless a command names it"
        return MetadataFile(path, tuple(lines), tuple(unknown), (note,) if others else ())

    def check_consistent(self, images: Sequence[Path]) -> None:
        """UserError when two lines contradict each other about an image.

        Args:
            images: the image of each line, as :meth:`match` finds it.
        """
        known: dict[tuple[Path, str], Line] = {}
        for path, line in zip(images, self.lines, strict=True):
            for column in COLUMNS[1:]:
                if text := line.text(column):
                    first = known.setdefault((path, column), line)
                    if first.text(column) != text:
                        raise UserError(
                            f"{line.where}: {column} of {path.name} is {text!r} but {first.text(column)!r} in an earlier "
                            "line; keep one of the two"
                        )

    def match(self, line: Line, images: Mapping[str, Sequence[tuple[str, Path]]]) -> Path:
        """The image that a line names by its path or by the end of its path.

        Args:
            images: file name in NFC -> (path relative to its source, path) of all images with that name.
        """
        text = nfc(line.text("file")).replace("\\", "/")
        wanted = PurePosixPath(text)
        absolute = wanted.is_absolute() or re.match(r"[A-Za-z]:/", text) is not None
        by_name: Mapping[str, Sequence[tuple[str, Path]]] = images
        candidates = images.get(wanted.name, ())
        if not candidates:
            same = {name for name in images if wanted.name.casefold() in _forms(name)}
            candidates = [entry for name in same for entry in by_name[name]]
        found = [path for relative, path in candidates if _ends_with(nfc(relative), wanted, absolute)]
        if not found and absolute:  # a path on another machine
            found = [path for _, path in candidates]
        if len(found) > 1:
            raise UserError(f"{line.where}: {wanted} matches {len(found)} images; give more of the path")
        if not found:
            near = difflib.get_close_matches(wanted.name, images, n=1)
            if wanted.stem.isdecimal():  # spreadsheets remove leading zeros
                numbered = (name for name in images if PurePosixPath(name).stem.isdecimal())
                near = [name for name in numbered if int(PurePosixPath(name).stem) == int(wanted.stem)][
                    :1
                ] or near
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{line.where}: there is no image {wanted} among the sources{hint}")
        return found[0]

    def inside(self, line: Line, column: str, roots: Sequence[Path]) -> Path:
        """The file in a cell, which must be in one of the given folders."""
        wanted = line.text(column).replace("\\", "/")
        for path, root in ((name_on_disk(root / wanted), root) for root in roots):
            if path.is_file() and path.resolve().is_relative_to(root.resolve()):
                return path
        raise UserError(
            f"{line.where}: {column} {wanted} was found neither beside the CSV file nor in the sources"
        )


def _forms(name: str) -> tuple[str, str]:
    """A file name in lower case, with and without its suffix."""
    folded = name.casefold()
    return folded, PurePosixPath(folded).stem


def _ends_with(relative: str, wanted: PurePosixPath, absolute: bool) -> bool:
    """Whether the folders of a path agree with those that a line names, as far as both go, if only the line is absolute."""
    folders, asked = PurePosixPath(relative).parts[:-1], wanted.parts[:-1]
    count = min(len(folders), len(asked)) if absolute else len(asked)
    return len(folders) >= count and folders[len(folders) - count :] == asked[len(asked) - count :]

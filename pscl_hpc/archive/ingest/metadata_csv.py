"""The CSV file of ``archive build --metadata``: one line per image.

Columns: ``file`` (required) and any of ``mask, dataset, specimen, production_batch, alloy, magnification,
um_per_pixel, split, reference``; ``condition`` is an alias of ``production_batch``. An empty cell changes nothing.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.archive.ingest.folders import name_on_disk
from pscl_hpc.archive.ingest.splits import closest_key, nfc
from pscl_hpc.errors import UserError, did_you_mean

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

    def text(self, column: str) -> str:
        return self.cells.get(column, "")

    def number(self, column: str) -> float:
        try:
            value = float(self.text(column))
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{self.where}: {column} is {self.text(column)!r} but must be a positive number")
        return value

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

    @staticmethod
    def read(path: Path) -> MetadataFile:
        """Parse the file; UserError if it cannot be read, lacks a column or has an unknown one."""
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                names = [name.strip() for name in reader.fieldnames or ()]
                reader.fieldnames = names
                rows = [(reader.line_num, row) for row in reader]
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as CSV ({error})") from error
        if len(names) == 1 and (mark := next((mark for mark in ";\t" if mark in names[0]), "")):
            raise UserError(f"{path} separates its columns by {mark!r}; use commas")
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{path} has the column {name!r} twice; keep one of them")
            if name not in (*COLUMNS, _ALIAS):
                raise UserError(f"{path} has an unknown column {name!r}{did_you_mean(name, COLUMNS)}")
        if "file" not in names:
            raise UserError(
                f"{path} has no column 'file'; its first line must list the columns, separated by commas"
            )
        lines = []
        for number, row in rows:
            where = f"{path}, line {number}"
            if None in row or any(value is None for value in row.values()):
                raise UserError(f"{where}: it must have {len(names)} cells, as the first line")
            cells = {name: value.strip() for name, value in row.items()}
            if not cells["file"]:
                raise UserError(f"{where}: the column 'file' is empty")
            batch, alias = cells.get("production_batch", ""), cells.pop(_ALIAS, "")
            if batch and alias and batch != alias:
                raise UserError(
                    f"{where}: production_batch is {batch!r} but its alias {_ALIAS} is {alias!r}; keep one"
                )
            cells["production_batch"] = batch or alias
            if near := closest_key(cells.get("split", "")):
                raise UserError(f"{where}: split is {cells['split']!r}; did you mean '{near}'?")
            lines.append(Line(where, cells))
        return MetadataFile(path, tuple(lines))

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
        wanted = Path(line.text("file"))
        found = [
            path
            for relative, path in images.get(nfc(wanted.name), ())
            if nfc(f"/{relative}").endswith(nfc(f"/{wanted.as_posix()}"))
            or nfc(str(path)) == nfc(str(wanted))
        ]
        if len(found) > 1:
            raise UserError(f"{line.where}: {wanted} matches {len(found)} images; give more of the path")
        if not found:
            near = difflib.get_close_matches(wanted.name, images, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{line.where}: there is no image {wanted} among the sources{hint}")
        return found[0]

    def inside(self, line: Line, column: str, roots: Sequence[Path]) -> Path:
        """The file in a cell, which must be in one of the given folders."""
        wanted = line.text(column)
        for path, root in ((name_on_disk(root / wanted), root) for root in roots):
            if path.is_file() and path.resolve().is_relative_to(root.resolve()):
                return path
        raise UserError(
            f"{line.where}: {column} {wanted} was found neither beside the CSV file nor in the sources"
        )

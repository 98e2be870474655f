"""A CSV file beside the images: one line per image, whatever is known of it.

Columns: ``file`` (required) and any of ``mask, dataset, specimen, condition, alloy, magnification,
um_per_pixel, split, reference``. Empty cells leave what is known from elsewhere.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.archive.ingest.splits import meant
from pscl_hpc.errors import UserError, did_you_mean

TEXTS = ("split", "specimen", "condition", "alloy")
NUMBERS = ("magnification", "um_per_pixel")
COLUMNS = ("file", "mask", "dataset", "reference", *TEXTS, *NUMBERS)
_YES, _NO = ("1", "true", "yes", "x"), ("", "0", "false", "no")


@dataclass(frozen=True)
class Line:
    """One line of the file; errors name it."""

    where: str
    cells: dict[str, str]

    def text(self, column: str) -> str:
        return self.cells.get(column, "")

    def number(self, column: str) -> float:
        try:
            value = float(self.text(column))
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{self.where}: {column} is {self.text(column)!r}, not a positive number")
        return value

    def flag(self, column: str) -> bool:
        value = self.text(column).lower()
        if value not in _YES + _NO:
            raise UserError(f"{self.where}: {column} is {self.text(column)!r}; write yes or no")
        return value in _YES


@dataclass(frozen=True)
class Sidecar:
    """The parsed file."""

    path: Path
    lines: tuple[Line, ...]

    @staticmethod
    def read(path: Path) -> Sidecar:
        """Parse the file; UserError for an unknown column, a missing one or an unreadable file."""
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                names = [name.strip() for name in reader.fieldnames or ()]
                reader.fieldnames = names
                rows = [(reader.line_num, row) for row in reader]
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{path} is not a readable CSV file ({error})") from error
        if len(names) == 1 and (mark := next((mark for mark in ";\t" if mark in names[0]), "")):
            raise UserError(f"{path} separates its columns by {mark!r}; save it with commas between them")
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{path} has the column {name!r} twice; keep one of them")
            if name not in COLUMNS:
                raise UserError(f"{path} has an unknown column {name!r}{did_you_mean(name, COLUMNS)}")
        if "file" not in names:
            raise UserError(
                f"{path} has no column 'file'; its first line must name the columns, comma-separated"
            )
        lines = []
        for number, row in rows:
            where = f"{path}, line {number}"
            if None in row or any(value is None for value in row.values()):
                raise UserError(f"{where}: it must have {len(names)} cells like the first line")
            cells = {name: value.strip() for name, value in row.items()}
            if not cells["file"]:
                raise UserError(f"{where}: the column 'file' is empty")
            if near := meant(cells.get("split", "")):
                raise UserError(f"{where}: split is {cells['split']!r}; did you mean '{near}'?")
            lines.append(Line(where, cells))
        return Sidecar(path, tuple(lines))

    def refuse_contradictions(self, named: Sequence[Path]) -> None:
        """UserError when two lines say different things of one image.

        Args:
            named: the image of each line, as :meth:`match` finds it.
        """
        said: dict[tuple[Path, str], Line] = {}
        for path, line in zip(named, self.lines, strict=True):
            for column in COLUMNS[1:]:
                if text := line.text(column):
                    first = said.setdefault((path, column), line)
                    if first.text(column) != text:
                        raise UserError(
                            f"{line.where}: {column} of {path.name} is {text!r}, but {first.text(column)!r} in an "
                            "earlier line; keep one of the two"
                        )

    def match(self, line: Line, images: Mapping[str, Sequence[tuple[str, Path]]]) -> Path:
        """The one image that a line names, by its whole path or by the end of it.

        Args:
            images: file name -> (path relative to its source, path) of the images of that name.
        """
        wanted = Path(line.text("file"))
        found = [
            path
            for relative, path in images.get(wanted.name, ())
            if f"/{relative}".endswith(f"/{wanted.as_posix()}") or path == wanted
        ]
        if len(found) > 1:
            raise UserError(f"{line.where}: {wanted} names {len(found)} images; give more of the path")
        if not found:
            near = difflib.get_close_matches(wanted.name, images, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{line.where}: no image {wanted} is among the sources{hint}")
        return found[0]

    def inside(self, line: Line, column: str, roots: Sequence[Path]) -> Path:
        """A file named by a line, looked for in the given folders and nowhere else."""
        wanted = line.text(column)
        for root in roots:
            path = root / wanted
            if path.is_file() and path.resolve().is_relative_to(root.resolve()):
                return path
        raise UserError(
            f"{line.where}: {column} {wanted} is neither beside the CSV file nor among the sources"
        )

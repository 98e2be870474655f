"""Reading CSV files as spreadsheets and other programs write them: encodings, separators, numbers with units."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

from pscl_hpc.errors import UserError

_SEPARATORS = ",;\t"
_FACTORS = {
    "magnification": {"": 1.0, "x": 1.0, "\u00d7": 1.0, "k": 1e3, "kx": 1e3, "k\u00d7": 1e3},
    "um_per_pixel": {"": 1.0, "um": 1.0, "µm": 1.0, "μm": 1.0, "nm": 1e-3, "mm": 1e3, "pm": 1e-6},
}
"""Units of the columns, as factors to times and micrometres."""


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The columns of a CSV file, its other lines with their numbers, and its separator.

    UTF-8 and UTF-16 (with a byte order mark), else Windows-1252; separated by commas, semicolons or tabs. Lines without
    content and columns without name and content are left out.

    Raises:
        UserError: the file cannot be read, or a line has another number of cells.
    """
    try:
        text = _decode(path.read_bytes())
        separator = ""
        if match := re.match(r"sep=(.)\r?\n", text):
            separator, text = match[1], "\n" + text[match.end() :]
        first = next((line for line in re.split(r"\r\n|\r|\n", text) if line.strip()), "")
        separator = separator or max(_SEPARATORS, key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error})") from error
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise UserError(f"{path} is empty; its first line must list the columns")
    (_, names), *lines = rows
    width = len(names)
    for number, row in lines:
        if len(row) != width:
            raise UserError(f"{path}, line {number}: it must have {width} cells, as the first line")
    kept = [place for place, name in enumerate(names) if name or any(row[place] for _, row in lines)]
    if any(not names[place] for place in kept):
        raise UserError(f"{path} has a column without a name in its first line; name it or remove it")
    return (
        [names[place] for place in kept],
        [(number, [row[place] for place in kept]) for number, row in lines],
        separator,
    )


def _decode(data: bytes) -> str:
    if data.startswith(b"PK\x03\x04"):
        raise ValueError("it is a workbook; save it as CSV")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252")
    if "\0" in text:
        raise ValueError("it is not text; save it as CSV in UTF-8")
    return text


def parse_number(text: str, column: str, separator: str) -> float:
    """A positive number, perhaps with a unit (``5 kx``, ``21 nm``) and a decimal comma.

    Raises:
        ValueError: it is none, or ``10,000`` or ``10.000`` could be ten or ten thousand; the message says what to write.
    """
    match = re.fullmatch(r"([\d.,]+(?:[eE][-+]?\d+)?)\s*([^\d\s]*)", text)
    factor = (
        _FACTORS[column].get(match[2] if match[2] in _FACTORS[column] else match[2].lower())
        if match
        else None
    )
    if match is None or factor is None:
        raise ValueError("must be a positive number, or empty if it is not known")
    digits = match[1]
    # A group of three digits may be thousands; not after a leading zero, and not with the usual mark of the file.
    unusual = "." if separator == ";" else ","
    if re.fullmatch(rf"[1-9]\d{{0,2}}(\{unusual}\d{{3}})+", digits):
        plain = digits.replace(unusual, "")
        raise ValueError(
            f"could be {digits.replace(unusual, '.', 1)} or {plain}; write it without a separator of thousands"
        )
    if "," in digits and "." in digits:
        raise ValueError("has a comma and a point; write it without a separator of thousands")
    try:
        value = float(digits.replace(",", ".")) * factor
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError("must be a positive number")
    return value

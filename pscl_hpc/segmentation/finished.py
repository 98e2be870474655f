"""Which images an interrupted call has segmented already: a file that grows by a line for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pscl_hpc.files import writing

FINISHED_FILE = "finished.jsonl"


class Finished:
    """The finished images of an output folder.

    Args:
        folder: Of the output.
        settings: Everything besides the image that decides the output; lines with other settings are ignored.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self._path = folder / FINISHED_FILE
        self._settings = settings
        self._known: dict[str, dict[str, Any]] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else ():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = {"files": list(entry["files"]), "image": dict(entry["image"])}
            except (ValueError, TypeError, KeyError):
                continue  # a line that was not written to its end

    def find(self, key: str) -> dict[str, Any] | None:
        """What was recorded for an image; None if it is not finished, or one of its files is missing."""
        found = self._known.get(f"{self._settings} {key}")
        if found is None or not all(Path(path).is_file() for path in found["files"]):
            return None
        image: dict[str, Any] = found["image"]
        return image

    def add(self, key: str, image: dict[str, Any], files: Sequence[Path]) -> None:
        """Record an image whose files are written; JobError if that fails."""
        entry = {"key": f"{self._settings} {key}", "files": list(map(str, files)), "image": image}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            # A line that a killed call has left unfinished ends here.
            file.write(f"{'' if self._ends_line() else chr(10)}{json.dumps(entry)}\n")

    def _ends_line(self) -> bool:
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 1))
            return file.read(1) in (b"", b"\n")

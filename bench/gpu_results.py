"""Reads the results that `bench/gpu.sh` wrote, for the tables and the plots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORWARD, BOTH = "forward", "forward and backward"

PARTS = (
    "ceilings",
    "patch-nt-xent",
    "sample-similar",
    "queue-info-nce",
    "peers",
    "step",
    "pretrain",
    "correctness",
)


class Device:
    """The result files of one device; a part that was not measured is empty."""

    def __init__(self, folder: Path, slug: str) -> None:
        self.slug = slug
        self.contents: dict[str, dict[str, Any]] = {}
        for part in PARTS:
            path = folder / f"gpu-{slug}-{part}.json"
            if path.is_file():
                self.contents[part] = json.loads(path.read_text(encoding="utf-8"))
        results = [self.result(part) for part in self.contents]
        self.name: str = results[0]["circumstances"]["device"] if results else slug
        """The device as the driver calls it."""
        self.dry = any(result["dry"] for result in results)

    def result(self, part: str) -> dict[str, Any]:
        """What was recorded of a part; {} if it was not measured."""
        found: dict[str, Any] = self.contents.get(part, {}).get("result", {})
        return found

    def entries(self, part: str, **where: object) -> Iterator[dict[str, Any]]:
        """Entries of a part that have these values."""
        for entry in self.result(part).get("measured", []):
            if all(entry.get(key) == value for key, value in where.items()):
                yield entry

    def first(self, part: str, **where: object) -> dict[str, Any]:
        """The first entry of a part that has these values; {} if there is none."""
        return next(self.entries(part, **where), {})

    def losses(self, **where: object) -> Iterator[tuple[str, dict[str, Any]]]:
        """(implementation, entry) of ours and of the correct peers for the loss."""
        for entry in self.entries("patch-nt-xent", **where):
            yield entry["implementation"], entry
        for entry in self.entries("peers", task="loss", **where):
            if FORWARD in entry:
                yield entry["peer"], entry


def devices(folder: Path, *, dry: bool = False) -> list[Device]:
    """All devices with results in a folder; with `dry`, also those of dry runs, which measured nothing."""
    slugs = {
        path.name.removeprefix("gpu-").removesuffix(f"-{part}.json")
        for part in PARTS
        for path in folder.glob(f"gpu-*-{part}.json")
    }
    found = [Device(folder, slug) for slug in sorted(slugs)]
    return [device for device in found if dry or not device.dry]


def median(entry: dict[str, Any], what: str = BOTH) -> float | None:
    """Median milliseconds of a part of an entry; None if it was not measured."""
    found: float | None = entry.get(what, {}).get("median_ms")
    return found

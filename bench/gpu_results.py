"""Reading of the results that `bench/gpu.sh` wrote: shared by the tables and the plots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORWARD, BOTH = "forward", "forward and backward"

OURS = ("triton, row", "triton, symmetric", "chunked")
"""Forms of our own loss; the other names are those of peers."""

PARTS = (
    "ceilings",
    "patch-nt-xent",
    "sample-similar",
    "queue-info-nce",
    "peers",
    "step",
    "pretrain",
    "correctness",
    "profile",
)


class Device:
    """The result files of one device, by part; a part that was not measured is empty."""

    def __init__(self, folder: Path, slug: str) -> None:
        self.slug = slug
        self.contents: dict[str, dict[str, Any]] = {}
        for part in PARTS:
            path = folder / f"gpu-{slug}-{part}.json"
            if path.is_file():
                self.contents[part] = json.loads(path.read_text(encoding="utf-8"))

    @property
    def name(self) -> str:
        """The device as the driver calls it."""
        for content in self.contents.values():
            found: str = content["result"]["circumstances"]["device"]
            return found
        return self.slug

    def __contains__(self, part: str) -> bool:
        return part in self.contents

    def result(self, part: str) -> dict[str, Any]:
        """What was recorded of a part; {} where it was not measured."""
        found: dict[str, Any] = self.contents.get(part, {}).get("result", {})
        return found

    def entries(self, part: str, **where: object) -> Iterator[dict[str, Any]]:
        """Entries of a part that have these values."""
        for entry in self.result(part).get("measured", []):
            if all(entry.get(key) == value for key, value in where.items()):
                yield entry

    @property
    def tiny(self) -> bool:
        return any(content["result"]["tiny"] for content in self.contents.values())


def devices(folder: Path, *, tiny: bool = False) -> list[Device]:
    """All devices with results in a folder; those of dry runs, which measure nothing, only with `tiny`."""
    slugs = {
        path.name.removeprefix("gpu-").removesuffix(f"-{part}.json")
        for part in PARTS
        for path in folder.glob(f"gpu-*-{part}.json")
    }
    found = [Device(folder, slug) for slug in sorted(slugs)]
    return [device for device in found if tiny or not device.tiny]


def median(entry: dict[str, Any], what: str) -> float | None:
    """Median milliseconds of an entry's forward pass, or forward and backward; None where it failed."""
    found: float | None = entry.get(what, {}).get("median_ms")
    return found


def losses(device: Device, dtype: str, **where: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """(implementation, entry) of ours and of the peers for the loss, at these values."""
    for entry in device.entries("patch-nt-xent", dtype=dtype, **where):
        yield entry["implementation"], entry
    for entry in device.entries("peers", task="loss", dtype=dtype, **where):
        if "skipped" not in entry and "failed" not in entry:
            yield entry["peer"], entry

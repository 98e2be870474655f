"""One part of `bench/gpu.sh`: its device and time limit, and its result file, which a later call resumes."""

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.record import RESULTS, package_versions, record

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "pscl_kernels"
TOOLKIT = ROOT / "pscl_hpc"

UNFINISHED = 4
"""Exit code of a part whose time ran out before it had measured everything."""

OUT_OF_MEMORY = "out of memory"
"""Reason of a failure that is kept as a result and not tried again."""


@dataclass(frozen=True)
class Setting:
    """Device and time limit. On a CPU the run is dry: tiny sizes that test the scripts and measure nothing."""

    device: torch.device
    seconds: float
    """No measurement begins after this many seconds."""
    begun: float = field(default_factory=time.monotonic)

    @property
    def dry(self) -> bool:
        return self.device.type == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """Main dtype of the features. Triton's interpreter computes bfloat16 products wrongly."""
        return torch.float16 if self.dry else torch.bfloat16

    def left(self) -> float:
        """Seconds left."""
        return self.seconds - (time.monotonic() - self.begun)

    def slug(self) -> str:
        """Short name of the device for file names: h100, h200, cpu."""
        if self.dry:
            return "cpu"
        name = torch.cuda.get_device_name()
        known = re.search(r"\b([A-Z]{1,2}\d{2,4}[A-Z]?)\b", name)
        return (known.group(1) if known else re.sub(r"\W+", "-", name)).lower()


def parse(parser: argparse.ArgumentParser) -> tuple[Setting, argparse.Namespace]:
    """Add and read the options that `gpu.sh` passes to every part; exits with code 3 without a GPU."""
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: dry run, tiny sizes")
    parser.add_argument("--seconds", type=float, default=540.0, help="no measurement begins after these")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(3, "torch finds no CUDA device; --device cpu makes a dry run\n")
    return Setting(torch.device(options.device), options.seconds), options


class Results:
    """Entries of `gpu-<device>-<name>.json`, written after each one.

    Entries of an earlier run are kept if device, versions, the hash of `sources` and `also` are unchanged. Failures
    other than lack of memory are dropped, so that they are tried again, unless `keep_failures`.
    """

    def __init__(
        self,
        name: str,
        setting: Setting,
        header: Mapping[str, Any] | None = None,
        *,
        sources: tuple[Path, ...] = (KERNELS,),
        also: Mapping[str, Any] | None = None,
        keep_failures: bool = False,
    ) -> None:
        self.name = f"gpu-{setting.slug()}-{name}"
        self.setting = setting
        self.header = dict(header or {})
        versions = package_versions()
        self.circumstances = {
            "device": "cpu" if setting.dry else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": versions.get("triton", "none"),
            "sources": {path.name: fingerprint(path) for path in sources},
            **(also or {}),
        }
        old = read(self.name)
        kept = old["measured"] if old and old["circumstances"] == self.circumstances else []
        self.entries: list[dict[str, Any]] = [e for e in kept if keep_failures or not failures(e)]

    def find(self, **key: object) -> dict[str, Any] | None:
        """The entry that has these values."""
        found = (entry for entry in self.entries if all(entry.get(k) == v for k, v in key.items()))
        return next(found, None)

    def measure(self, key: dict[str, Any], call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The entry `key`, added with what `call` finds if there is none; exits with UNFINISHED if time is up."""
        old = self.find(**key)
        if old is not None:
            return old
        if self.setting.left() <= 0:
            print(f"no time left for {key}: run this part again to resume")
            sys.exit(UNFINISHED)
        entry = {**key, **attempt(call)}
        self.add(entry)
        if not self.setting.dry:
            torch.cuda.empty_cache()
        return entry

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry, print it and write the file."""
        print(json.dumps(entry), flush=True)
        self.entries.append(entry)
        self.write()

    def write(self) -> Path:
        dry = self.setting.dry
        result = {"dry": dry, "circumstances": self.circumstances, **self.header, "measured": self.entries}
        return record(self.name, result, command=f"bash bench/gpu.sh{' --dry' * dry} OUT")

    def end(self, ignore: Callable[[dict[str, Any]], bool] = lambda entry: False) -> None:
        """Exit with code 1 if an entry, other than those to ignore, failed for another reason than memory."""
        reasons = [reason for entry in self.entries if not ignore(entry) for reason in failures(entry)]
        if reasons:
            sys.exit(f"{len(reasons)} failed and will be tried again: {'; '.join(dict.fromkeys(reasons))}")


def failures(entry: Mapping[str, Any]) -> list[str]:
    """Reasons other than lack of memory for which an entry or a part of it failed."""
    parts = (entry, *(value for value in entry.values() if isinstance(value, dict)))
    return [part["failed"] for part in parts if part.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY]


def attempt(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `call` returns, or {"failed": reason}: one shape or peer that fails does not end a part."""
    try:
        return call()
    except torch.cuda.OutOfMemoryError:
        return {"failed": OUT_OF_MEMORY}
    except Exception as error:  # any kind of failure is recorded
        return {"failed": reason_of(error)}


def reason_of(error: BaseException) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def folder() -> Path:
    """Folder of the results; it is made if it does not exist."""
    found = Path(os.environ.get("PSCL_BENCH_RESULTS", RESULTS))
    found.mkdir(parents=True, exist_ok=True)
    return found


def read(name: str) -> dict[str, Any] | None:
    """The `result` of a file in the results folder; None if there is no such file."""
    path = folder() / f"{name}.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
    return result


def fingerprint(package: Path) -> str:
    """Hash of the Python sources of a package."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]

"""Result files that grow entry by entry, so that a run that is cut off keeps what it measured and can be continued."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.gpu.measure import OUT_OF_MEMORY
from bench.gpu.setting import Setting
from bench.record import RESULTS, record

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "pscl_kernels"
TOOLKIT = ROOT / "pscl_hpc"


class Results:
    """Entries of `gpu-<device>-<name>.json`, written after each one.

    Entries of an earlier run are kept if they were measured in the same circumstances: device, versions, what `also`
    names, and, with `of_kernels`, the very same kernel sources. Of those of our own kernels, the ones that failed for
    any reason but memory are left out, so that they are tried again.
    """

    def __init__(
        self,
        name: str,
        setting: Setting,
        header: Mapping[str, Any],
        *,
        of_kernels: bool,
        also: Mapping[str, str] | None = None,
    ) -> None:
        self.name = f"gpu-{setting.slug()}-{name}"
        self.setting = setting
        self.circumstances = circumstances(setting, of_kernels=of_kernels) | dict(also or {})
        self.header = dict(header)
        self.entries: list[dict[str, Any]] = []
        old = read(self.name)
        if old and old["circumstances"] == self.circumstances:
            self.entries = [e for e in old["measured"] if not (of_kernels and failures(e))]

    def has(self, **key: object) -> bool:
        """Whether an entry has these values."""
        return any(all(entry.get(k) == v for k, v in key.items()) for entry in self.entries)

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry, print it, write the file."""
        print(json.dumps(entry), flush=True)
        self.entries.append(entry)
        self.write()

    def end(self, *, leave_out: Callable[[dict[str, Any]], bool] = lambda entry: False) -> None:
        """End the program with code 1 where an entry, but for some, failed for any reason but memory."""
        failed = [reason for entry in self.entries if not leave_out(entry) for reason in failures(entry)]
        if failed:
            sys.exit(f"{len(failed)} failed and will be tried again: {'; '.join(dict.fromkeys(failed))}")

    def write(self) -> Path:
        result = {
            "tiny": self.setting.tiny,
            "circumstances": self.circumstances,
            **self.header,
            "measured": self.entries,
        }
        return record(self.name, result, command=self.setting.command())


def failures(entry: Mapping[str, Any]) -> list[str]:
    """Why an entry, or what it has of several calls, failed, but for lack of memory."""
    found = [entry, *(value for value in entry.values() if isinstance(value, dict))]
    reasons = [part["failed"] for part in found if "failed" in part]
    return [reason for reason in reasons if reason != OUT_OF_MEMORY]


def folder() -> Path:
    """Where results are written; made where it is missing."""
    found = Path(os.environ.get("PSCL_BENCH_RESULTS", RESULTS))
    found.mkdir(parents=True, exist_ok=True)
    return found


def read(name: str) -> dict[str, Any] | None:
    """The `result` of a file in the results folder; None where there is none."""
    path = folder() / f"{name}.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
    return result


def circumstances(setting: Setting, *, of_kernels: bool) -> dict[str, str]:
    """What must not have changed for old entries to stand beside new ones."""
    found = {
        "device": "cpu" if setting.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": _version("triton"),
    }
    if of_kernels:
        found["kernels"] = fingerprint(KERNELS)
    return found


def fingerprint(package: Path) -> str:
    """Hash of the Python sources of `KERNELS` or `TOOLKIT`."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"

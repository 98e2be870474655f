"""Memory and time of a batch that is computed in parts with the loss of the whole batch (`accumulate=exact`).

    python -m bench.large_batch [--size 32] [--part 8]

One step in a process of its own, the first one: the growth of its largest resident memory over that before the step, and
its CPU seconds, which hardly depend on other work on the machine. The default U-Net with group normalisation, on the CPU.
Writes `cpu-large-batch.json`.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.chaos import write_archive
from bench.record import record
from pscl_hpc.archive import Archive
from pscl_hpc.config import resolve_config
from pscl_hpc.pretraining import PretrainTask
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.training import Loop, Ranks

BATCHES = {"simclr": (64, 256, 1024, 4096), "pscl-simclr": (64, 128, 256)}
LARGEST_WHOLE = 256
"""Largest batch that is also computed at once."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=32, help="side of the windows")
    parser.add_argument("--part", type=int, default=8, help="images of a part")
    parser.add_argument("--one-of", nargs=3, metavar=("ARCHIVE", "METHOD", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_of:
        archive, method, batch = options.one_of
        print(json.dumps(one_step(Path(archive), method, int(batch), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive.h5"
        write_archive(archive, patches=64)
        result = measure(archive, options)
    command = f"python -m bench.large_batch --size {options.size} --part {options.part}"
    print(record("cpu-large-batch", result, command=command), json.dumps(result, indent=2))


def measure(archive: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All steps."""
    rows = []
    for method, batches in BATCHES.items():
        for batch in batches:
            row: dict[str, Any] = {"method": method, "batch": batch}
            for kind in ("whole", "exact"):
                if kind == "exact" or batch <= LARGEST_WHOLE:
                    row[kind] = _in_process(archive, method, batch, kind, options)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return {"size": options.size, "part": options.part, "rows": rows}


def one_step(archive: Path, method: str, batch: int, options: argparse.Namespace) -> dict[str, float]:
    """Growth of the largest resident memory of this process in one step, and its CPU seconds."""
    with Archive(archive) as opened:
        loop, batches = _prepare(opened, archive, method, batch, options, exact=options.exact)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        loop.step(batches, measure=False)
        seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"before_mb": round(before / 1024, 1), "growth_mb": round((peak - before) / 1024, 1),
            "cpu_seconds": round(seconds, 2)}  # fmt: skip


def _prepare(
    opened: Archive, archive: Path, method: str, batch: int, options: argparse.Namespace, *, exact: bool
) -> tuple[Loop, list[Any]]:
    section: dict[str, Any] = {"name": method}
    if method.startswith("pscl"):
        section |= {
            "reference": {"ids": ["alloy/0"], "per_batch": batch // options.part},
            "templates_per_class": 4,
        }
    config = resolve_config(
        {
            "kind": "pretrain",
            "run": "unused",
            "data": {"archive": str(archive)},
            "model": {"norm": "group"},
            "views": {"size": [options.size, options.size]},
            "method": section,
            "batch_size": batch,
            "accumulate": "exact" if exact else 1,
            "part_size": options.part,
            "runtime": {"device": "cpu", "threads": torch.get_num_threads()},
        },
        source="bench/large_batch.py",
    )
    assert isinstance(config, PretrainConfig)
    ranks = Ranks.alone(torch.device("cpu"))
    task = PretrainTask(config, opened, ranks)
    loop = Loop(task, RunFolder.follow(Path("unused"), config, done=False), ranks)
    return loop, [task.dataset[number] for number in range(task.accumulate)]


def _in_process(
    archive: Path, method: str, batch: int, kind: str, options: argparse.Namespace
) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.large_batch", "--one-of", str(archive), method, str(batch)]
    command += ["--size", str(options.size), "--part", str(options.part)]
    command += ["--exact"] if kind == "exact" else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()

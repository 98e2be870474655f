"""Real pretraining over batch sizes: images per second of `pscl_hpc.pretraining`, from an archive to Adam's step.

    ARCHIVE=alloys.h5 python -m bench.gpu.pretrain

Without ARCHIVE an archive of synthetic alloys is made. Windows are read by worker processes, as in a real run; views,
logging and the check for a finite loss are part of the step. The rate is the one that a run writes into its metrics.
Each batch size runs in a process of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu.check import require
from bench.gpu.results import TOOLKIT, Results, fingerprint
from bench.gpu.setting import UNFINISHED, Setting, parse
from pscl_hpc.archive import Archive
from pscl_hpc.archive.synthesis import write_synthetic_archive
from pscl_hpc.config import resolve_config
from pscl_hpc.pretraining import pretrain
from pscl_hpc.pretraining.config import PretrainConfig

PRECISIONS = ("bf16", "fp32")

LINE = '{"batch_size"'
"""What a line of a child process begins with that is an entry."""

LONGEST = 120.0
"""Seconds after which one batch size is given up."""


class Work(NamedTuple):
    """What the runs are."""

    batches: tuple[int, ...]
    side: int
    """Side of a window in pixels."""
    steps: int
    log_every: int
    """Steps between two rates; the first of a run is left out, as kernels are chosen and compiled in it."""
    workers: int
    synthetic: tuple[int, int]
    """Images, and their side, of the synthetic archive."""


def work(setting: Setting) -> Work:
    if setting.tiny:
        return Work((2,), 32, 2, 1, 0, (4, 64))
    workers = max(1, min(14, (os.cpu_count() or 1) - 2))
    return Work((8, 16, 32, 64, 128, 256, 512), 376, 40, 10, workers, (64, 768))


def main() -> None:
    setting = parse(__doc__)
    require(setting, "patch_nt_xent", "sample_similar")
    if setting.only is not None:
        size, precision = setting.only.split(",")
        print(json.dumps(measured(setting, Path(os.environ["ARCHIVE"]), int(size), precision)))
        return
    with tempfile.TemporaryDirectory() as folder:
        given = "ARCHIVE" in os.environ
        path = Path(os.environ["ARCHIVE"]) if given else synthetic(setting, Path(folder))
        with Archive(path) as archive:
            name = path.name if given else "synthetic"
            results = opened(setting, name, len(archive), archive.fingerprint)
        for precision in PRECISIONS[: 1 if setting.tiny else None]:
            for batch in work(setting).batches:
                if results.has(batch_size=batch, precision=precision):
                    continue
                if setting.left() < 20:
                    print(f"no time left for batch {batch} in {precision}: run this part again to go on")
                    sys.exit(UNFINISHED)
                results.add(in_own_process(setting, path, batch, precision))
        results.end()


def opened(setting: Setting, archive: str, images: int, content: str) -> Results:
    """The results of this toolkit on this archive, given by its name, the number of its images and its fingerprint."""
    also = {"archive": archive, "images": str(images), "content": content, "toolkit": fingerprint(TOOLKIT)}
    return Results("pretrain", setting, work(setting)._asdict(), of_kernels=True, also=also)


def synthetic(setting: Setting, folder: Path) -> Path:
    images, side = work(setting).synthetic
    return write_synthetic_archive(folder / "synthetic.h5", images, 1, (side, side), families=("particles",))


def in_own_process(setting: Setting, archive: Path, batch: int, precision: str) -> dict[str, Any]:
    """The entry of one batch size, with the reason where it failed."""
    command = [sys.executable, "-m", "bench.gpu.pretrain", "--device", setting.device.type]
    entry: dict[str, Any] = {"batch_size": batch, "precision": precision}
    try:
        done = subprocess.run(
            [*command, "--only", f"{batch},{precision}"],
            env={**os.environ, "ARCHIVE": str(archive)},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return entry | {"failed": f"no end after {LONGEST:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith(LINE):
            found: dict[str, Any] = json.loads(line)
            return found
    lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
    return entry | {"failed": "out of memory" if "OutOfMemoryError" in done.stderr else lines[-1][:300]}


def measured(setting: Setting, archive: Path, batch: int, precision: str) -> dict[str, Any]:
    """Rate and memory of a run of a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        run = pretrain(configured(setting, archive, batch, precision, Path(folder) / "run"))
        lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if line["step"] > work(setting).log_every]
    return {
        "batch_size": batch,
        "precision": precision,
        "images_per_second": statistics.median(rates),
        "slowest_images_per_second": min(rates),
        "peak_mb": max(line["memory_mb"] for line in lines),
    }


def configured(setting: Setting, archive: Path, batch: int, precision: str, run: Path) -> PretrainConfig:
    """PSCL-SimCLR at its defaults on the first annotated training image."""
    with Archive(archive) as opened:
        annotated = next(r for r in opened.records if r.has_mask and r.split in ("", "train"))
    plan = work(setting)
    tree = {
        "kind": "pretrain",
        "run": str(run),
        "data": {"archive": str(archive)},
        "views": {"size": [plan.side, plan.side]},
        "method": {"name": "pscl-simclr", "reference": {"ids": [annotated.id]}},
        "batch_size": batch,
        "schedule": {"steps": plan.steps},
        "log": {"every_steps": plan.log_every},
        "checkpoint": {"every_steps": plan.steps},
        "runtime": {"device": setting.device.type, "precision": precision, "workers": plan.workers},
    }
    if setting.tiny:
        tree["model"] = {"widths": [4, 8, 8, 16]}
    config = resolve_config(tree, source="bench/gpu/pretrain.py")
    assert isinstance(config, PretrainConfig)
    return config


if __name__ == "__main__":
    main()

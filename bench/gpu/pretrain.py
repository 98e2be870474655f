"""Real pretraining over batch sizes: images per second of `pscl_hpc.pretraining`, from the archive to Adam's step.

    ARCHIVE=alloys.h5 python -m bench.gpu.pretrain

Without ARCHIVE, an archive of synthetic alloys is made. Windows are read by worker processes, as in any run; views,
logging and the check for a finite loss are part of the step. The rate is the one that a run writes into its metrics.
"""

import argparse
import gc
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gpu.check import require
from bench.gpu.run import KERNELS, ROOT, TOOLKIT, Results, Setting, parse
from pscl_hpc.archive import Archive
from pscl_hpc.archive.synthesis import write_synthetic_archive
from pscl_hpc.config import load_config
from pscl_hpc.pretraining import pretrain
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.runs import read_metrics

CONFIG = ROOT / "configs" / "pretrain" / "pscl-simclr.yaml"

LOG_EVERY = 10
"""Steps between two rates. The first rate of a run includes compilation and is left out."""


def main() -> None:
    setting, _ = parse(argparse.ArgumentParser(description=__doc__))
    with tempfile.TemporaryDirectory() as folder:
        archive = os.environ.get("ARCHIVE")
        run(setting, Path(archive) if archive else synthetic(setting, Path(folder)), archive or "synthetic")


def synthetic(setting: Setting, folder: Path) -> Path:
    images, side = (4, 64) if setting.dry else (64, 768)
    return write_synthetic_archive(folder / "synthetic.h5", images, 1, (side, side), families=("particles",))


def opened(setting: Setting, archive: Archive, name: str) -> Results:
    """The results of this toolkit on this archive."""
    also = {"archive": Path(name).name, "images": len(archive), "content": archive.fingerprint}
    return Results("pretrain", setting, sources=(KERNELS, TOOLKIT), also=also)


def run(setting: Setting, path: Path, name: str) -> None:
    """Measure growing batch sizes in both precisions, until one does not fit."""
    require(setting, "patch_nt_xent", "sample_similar")
    with Archive(path) as archive:
        results = opened(setting, archive, name)
        annotated = next(r.id for r in archive.records if r.has_mask and r.split in ("", "train"))
    for precision in ("fp32",) if setting.dry else ("bf16", "fp32"):
        for batch in (2,) if setting.dry else (8, 16, 32, 64, 128, 256, 512):
            key = {"batch_size": batch, "precision": precision}
            if "failed" in results.measure(
                key, partial(measured, setting, path, annotated, batch, precision)
            ):
                break
    results.end()


def measured(setting: Setting, archive: Path, annotated: str, batch: int, precision: str) -> dict[str, Any]:
    """Rate and peak memory of a run of 40 steps."""
    side, steps, every = (32, 2, 1) if setting.dry else (376, 4 * LOG_EVERY, LOG_EVERY)
    workers = 0 if setting.dry else max(1, min(14, (os.cpu_count() or 1) - 2))
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"run={folder}/run", f"data.archive={archive}", f"method.reference.ids=[{annotated}]",
            f"views.size=[{side},{side}]", f"batch_size={batch}",
            f"schedule.steps={steps}", "schedule.warmup_steps=0",
            f"log.every_steps={every}", f"checkpoint.every_steps={steps}",
            f"runtime.device={setting.device.type}", f"runtime.precision={precision}", f"runtime.workers={workers}",
        ]  # fmt: skip
        if setting.dry:
            overrides.append("model.widths=[4,8,8,16]")
        else:
            gc.collect()  # what is left of the run before
            torch.cuda.reset_peak_memory_stats()
        config = load_config(CONFIG, overrides, kind="pretrain")
        assert isinstance(config, PretrainConfig)
        lines = read_metrics(pretrain(config).path / "metrics.jsonl")
    rates = [line["images_per_second"] for line in lines if line["step"] > every]
    return {
        "images_per_second": statistics.median(rates),
        "slowest_images_per_second": min(rates),
        "peak_mb": max(line["memory_mb"] for line in lines),
    }


if __name__ == "__main__":
    main()

"""One annotated image, with and without PSCL pretraining, on real alloys.

    python bench/one_shot.py ARCHIVE --out DIR [--scale cpu|gpu] [--jobs 2] [--template uhcs_steel/uhcs0477]

ARCHIVE is built from micrographs with `pscl-hpc archive build`. One trunk is pretrained on the training images of the
data sets together, with class templates from ONE annotated image (--template). It is then fine-tuned on each reference
image of each data set, and so is an untrained trunk. Validation images choose the checkpoint, test images score it.

Every part is an ordinary `pscl-hpc` command and an ordinary run folder in DIR: an interrupted study goes on where it
was. The table goes to bench/results/ and DIR/report.html shows the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from bench.record import record
from pscl_hpc.archive import Archive

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ("nasa_super", "uhcs_steel", "metaldam")
SCORED = {"nasa_super": ("test", "test_ood"), "uhcs_steel": ("test",), "metaldam": ("test",)}

# What differs between a CPU in an hour and a GPU: crops, batches, schedules. The protocol is the same.
SCALES: dict[str, dict[str, list[str]]] = {
    "cpu": {
        "pretrain": ["views.size=[128,128]", "batch_size=8", "schedule.steps=400", "schedule.warmup_steps=0",
                     "schedule.decay=constant", "optimiser.name=adam", "optimiser.lr=1e-3",
                     "optimiser.weight_decay=0", "runtime.workers=0", "checkpoint.every_steps=50"],
        "finetune": ["crop=[128,128]", "batch_size=4", "schedule.steps=150", "validate_every=50",
                     "checkpoint.every_steps=100"],
    },
    "gpu": {
        "pretrain": ["views.size=[256,256]", "batch_size=64", "schedule.steps=6000", "runtime.workers=8",
                     "runtime.precision=bf16"],
        "finetune": ["crop=[256,256]", "batch_size=8", "schedule.steps=1000", "validate_every=100",
                     "runtime.precision=bf16"],
    },
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A fine-tuning and its evaluation."""

    dataset: str
    reference: str
    pretrained: bool

    @property
    def name(self) -> str:
        return f"{self.reference.replace('/', '--')}--{'pscl' if self.pretrained else 'scratch'}"


def plan(archive: Archive) -> Iterator[Job]:
    """References x (scratch, pretrained), data set after data set."""
    for dataset in DATASETS:
        for reference in archive.collections[dataset].references:
            for pretrained in (False, True):
                yield Job(dataset, reference, pretrained)


def command(*arguments: str, threads: int) -> str:
    """Run one ``pscl-hpc`` command and return its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "pscl_hpc.cli", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"pscl-hpc {' '.join(arguments)}\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def pretrain(arguments: argparse.Namespace, threads: int) -> Path:
    run = arguments.out / "pretrain"
    command(
        "pretrain", "--config", str(ROOT / "configs/pretrain/pscl-simclr.yaml"), f"run={run}", "name=one-shot-pretrain",
        f"data.archive={arguments.archive}", f"data.datasets=[{','.join(DATASETS)}]", "data.splits=[train]",
        f"method.reference.ids=[{arguments.template}]", f"runtime.threads={threads}",
        *SCALES[arguments.scale]["pretrain"], threads=threads,
    )  # fmt: skip
    return run


def finetune(job: Job, trunk: Path, arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    run = arguments.out / job.name
    command(
        "finetune", "--config", str(ROOT / "configs/finetune/default.yaml"), f"run={run}", f"name={job.name}",
        f"data.archive={arguments.archive}", f"references=[{job.reference}]", f"runtime.threads={threads}",
        f"pretrained={trunk if job.pretrained else ''}", *SCALES[arguments.scale]["finetune"], threads=threads,
    )  # fmt: skip
    if not (run / "evaluation.json").exists():
        splits = [part for split in SCORED[job.dataset] for part in ("--split", split)]
        command("evaluate", str(run), *splits, threads=threads)
    scores = json.loads((run / "evaluation.json").read_text())["splits"]
    return {
        "dataset": job.dataset,
        "reference": job.reference,
        "pretrained": job.pretrained,
        "scores": scores,
    }


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per set and split: mean, standard deviation (n - 1) and worst over references; share of Dice error removed."""
    table = []
    for dataset in DATASETS:
        for split in SCORED[dataset]:
            line: dict[str, Any] = {"dataset": dataset, "split": split}
            for name, pretrained in (("scratch", False), ("pscl", True)):
                found = [
                    row["scores"][split]["mean_dice"]
                    for row in rows
                    if row["dataset"] == dataset and row["pretrained"] == pretrained
                ]
                spread = stdev(found) if len(found) > 1 else None
                line[name] = {"mean": mean(found), "std": spread, "worst": min(found), "dice": found}
            line["error_removed"] = 1 - (1 - line["pscl"]["mean"]) / (1 - line["scratch"]["mean"])
            table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--scale", choices=sorted(SCALES), default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="fine-tunings at a time")
    parser.add_argument("--pretrain-threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--template", default="uhcs_steel/uhcs0477", help="annotated image of the pretraining"
    )
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    with Archive(arguments.archive) as archive:
        archive.find(arguments.template)
        jobs = list(plan(archive))
    started = time.time()
    trunk = pretrain(arguments, arguments.pretrain_threads)
    threads = max(1, cores // arguments.jobs)
    rows = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(lambda job: finetune(job, trunk, arguments, threads), jobs):
            rows.append(row)
            split = SCORED[row["dataset"]][0]
            print(f"{len(rows)}/{len(jobs)} {row['reference']} {'pscl' if row['pretrained'] else 'scratch'}: "
                  f"{row['scores'][split]['mean_dice']:.3f}", flush=True)  # fmt: skip
    command("report", str(arguments.out), threads=cores)
    table = summarise(rows)
    for line in table:
        print(f"{line['dataset']:12} {line['split']:9} scratch {line['scratch']['mean']:.3f} +- "
              f"{line['scratch']['std'] or 0:.3f} (worst {line['scratch']['worst']:.3f})   pscl "
              f"{line['pscl']['mean']:.3f} +- {line['pscl']['std'] or 0:.3f} (worst {line['pscl']['worst']:.3f})   "
              f"error removed {100 * line['error_removed']:.0f}%")  # fmt: skip
    result = {
        "scale": arguments.scale, "settings": SCALES[arguments.scale], "template": arguments.template,
        "table": table, "rows": rows, "last_call_seconds": time.time() - started,
        "pretrain": yaml.safe_load((trunk / "config.yaml").read_text()),
    }  # fmt: skip
    shown = f"python bench/one_shot.py ARCHIVE --out DIR --scale {arguments.scale} --template {arguments.template}"
    print(record(f"{arguments.scale}-one-shot", result, command=shown))


if __name__ == "__main__":
    main()

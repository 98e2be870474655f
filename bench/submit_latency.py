"""Seconds from `submit` to the first training step on an idle temporary Slurm, by stage.

    python bench/submit_latency.py [--repeats 3]

`slurm/test-cluster.sh check` lists the requirements. The model and images are tiny, so that nearly all of the
time is startup: Slurm's scheduling, importing Python and torch on each rank, initialising the process group. The first
line of metrics.jsonl marks the end of the first step. For comparison, the same interpreter imports the pretraining
once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.record import record
from pscl_hpc.archive import Collection, ShardWriter
from pscl_hpc.config import resolve_config
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import job_records
from pscl_hpc.launch.schedulers import SCHEDULERS, wait_for_end
from pscl_hpc.launch.submission import submit
from pscl_hpc.runs import read_metrics

SCRIPT = Path(__file__).parents[1] / "slurm" / "test-cluster.sh"
SHAPES = ((1, 1), (2, 1), (2, 2))
PATIENCE_S = 300


def measure(folder: Path, nodes: int, tasks: int, repeat: int) -> dict[str, float]:
    """One submission: seconds until it is submitted, until the job starts, and until the first step is done."""
    run = folder / f"{nodes}x{tasks}-{repeat}"
    config = resolve_config(
        {
            "kind": "pretrain",
            "run": str(run),
            "data": {"archive": str(folder / "a.h5")},
            "model": {"widths": [4, 8, 8, 16]},
            "views": {"size": [32, 32]},
            "method": {"name": "simclr"},
            "batch_size": 8,
            "schedule": {"steps": 1},
            "log": {"every_steps": 1},
            "runtime": {"threads": 1},
        },
        source="bench",
    )
    begin = time.time()
    done = submit(config, cluster="slurm", profile=Profile(nodes=nodes, tasks_per_node=tasks, time="10"))
    handed_over = time.time() - begin
    while not read_metrics(run / "metrics.jsonl"):
        if time.time() - begin > PATIENCE_S:
            sys.exit(f"no step in {PATIENCE_S} s; see {done.job.log(run)}")
        time.sleep(0.05)
    step = float(read_metrics(run / "metrics.jsonl")[0]["time"])
    shown = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", done.job.job], capture_output=True, text=True, check=True
    ).stdout
    started = next(word for word in shown.split() if word.startswith("StartTime=")).partition("=")[2]
    wait_for_end(done.job, 60)
    return {
        "handed_over": handed_over,
        # Slurm's times are whole seconds.
        "started": max(0.0, time.mktime(time.strptime(started, "%Y-%m-%dT%H:%M:%S")) - begin),
        "first_step": step - begin,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    folder = Path(tempfile.mkdtemp(prefix="submit-latency-"))
    pixels = np.random.default_rng(0).integers(0, 255, (16, 48, 48)).astype(np.uint8)
    with ShardWriter(folder / "a.h5", [Collection("noise", (), 0, (), ())]) as writer:
        for index, image in enumerate(pixels):
            writer.add(image, id=f"noise/{index}", dataset="noise", split="train")
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import pscl_hpc.pretraining"], check=True)
    imports = time.perf_counter() - begin
    os.environ["CLUSTER_DIR"] = f"/tmp/submit-latency-{os.getpid()}"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    subprocess.run([str(SCRIPT), "up", "2"], check=True, stdout=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = f"{os.environ['CLUSTER_DIR']}/etc/slurm.conf"
    slurm = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    rows = []
    try:
        for nodes, tasks in SHAPES:
            found = [measure(folder, nodes, tasks, repeat) for repeat in range(repeats)]
            row = {key: [round(each[key], 2) for each in found] for key in found[0]}
            middle = {f"median_{key}": round(statistics.median(values), 2) for key, values in row.items()}
            rows.append({"nodes": nodes, "ranks": nodes * tasks, **middle, **row})
            print(json.dumps(rows[-1]))
    finally:
        for run in folder.glob("*x*"):
            for job in job_records(run):
                SCHEDULERS["slurm"].kill(job)
        subprocess.run([str(SCRIPT), "down"], check=True)
    path = record(
        "cpu-submit-latency",
        {"slurm": slurm, "import_seconds": round(imports, 2), "rows": rows},
        command=f"python bench/submit_latency.py --repeats {repeats}",
    )
    shutil.rmtree(folder)
    print(path)


if __name__ == "__main__":
    main()

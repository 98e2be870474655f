"""Pretraining on 1, 2 and 4 ranks of this machine, compared with the predictions of `pscl-hpc plan`.

    python bench/scaling.py [--size 96] [--images 4] [--steps 12]

Each rank has one thread and is pinned to one core; if there are more ranks than cores, they share cores. The rates of
one rank and the links between ranks (gloo over loopback) are measured first, in the same run. So is the slowdown of
processes that share memory and cores without communicating: independent trainings of one rank, as many as there will
be ranks, at the same time. The prediction is given this factor, so that the comparison tests its communication. Each
number of ranks also trains without synchronised batch normalisation. The number of images per rank is fixed. Writes
bench/results/cpu-scaling.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.record import record
from pscl_hpc.archive import Archive
from pscl_hpc.archive.synthesis import write_synthetic_archive
from pscl_hpc.config import load_config
from pscl_hpc.planning import Links, measure_rates, predict
from pscl_hpc.pretraining.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
RANKS = (1, 2, 4)
LARGE = 1 << 23
"""Bytes of the message that measures bandwidth."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=96, help="pixels of a view")
    parser.add_argument("--images", type=int, default=4, help="unlabelled images per rank")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--link", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.link:
        measure_link()
        return
    cores = sorted(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = study(arguments, Path(folder), cores)
    print(record("cpu-scaling", result, command=f"python bench/scaling.py {' '.join(sys.argv[1:])}".strip()))


def study(arguments: argparse.Namespace, folder: Path, cores: list[int]) -> dict[str, Any]:
    archive = folder / "synthetic.h5"
    write_synthetic_archive(archive, 24, 1, families=("precipitates",))
    with Archive(archive) as opened:
        (collection,) = opened.collections.values()
    config = ROOT / "configs/pretrain/pscl-simclr.yaml"
    settings = [
        f"data.archive={archive}", f"method.reference.ids=[{collection.references[0]}]",
        f"views.size=[{arguments.size},{arguments.size}]",
        f"schedule.steps={arguments.steps}", "log.every_steps=1", "log.purity=false", "log.similarity=false",
        "runtime.threads=1", "runtime.workers=0", "runtime.precision=fp32", "runtime.device=cpu",
    ]  # fmt: skip
    os.sched_setaffinity(0, {cores[0]})
    loaded = load_config(config, settings, kind="pretrain")
    assert isinstance(loaded, PretrainConfig)
    rates = measure_rates(loaded, [2, arguments.images, 2 * arguments.images])
    os.sched_setaffinity(0, cores)
    links = {ranks: link(ranks, cores) for ranks in RANKS if ranks > 1}
    lines: list[dict[str, Any]] = []
    for ranks in RANKS:
        measured = train(ranks, arguments, folder, config, settings, cores)
        known = links.get(ranks, {"bandwidth": 1.0, "latency": 0.0})
        model = Links(ranks, known["bandwidth"], known["bandwidth"], known["latency"], known["latency"])
        apart = (
            train(ranks, arguments, folder, config, settings, cores, apart=True) if ranks > 1 else measured
        )
        alone = [*settings, "runtime.sync_batchnorm=false"]
        unsynchronised = (
            train(ranks, arguments, folder / "own-norm", config, alone, cores) if ranks > 1 else measured
        )
        crowding = apart / lines[0]["measured_seconds"] if lines else 1.0
        found = predict(rates, model, ranks, arguments.images, crowding=crowding)
        line = {
            "ranks": ranks,
            "crowding": crowding,
            "apart_seconds": apart,
            "own_norm_seconds": unsynchronised,
            "measured_seconds": measured,
            "predicted_seconds": found.step,
            "predicted": dataclasses.asdict(found),
            "measured_over_predicted": measured / found.step,
            "efficiency_of_communication": apart / measured,
        }
        line["measured_efficiency"] = 1.0 if not lines else lines[0]["measured_seconds"] / measured
        lines.append(line)
        print(f"{ranks} ranks: {measured:.3f} s per step, predicted {found.step:.3f} s", flush=True)
    return {
        "size": arguments.size, "images_per_rank": arguments.images, "cores": len(cores), "lines": lines,
        "links": links, "rates": dataclasses.asdict(rates),
    }  # fmt: skip


def train(
    ranks: int,
    arguments: argparse.Namespace,
    folder: Path,
    config: Path,
    settings: list[str],
    cores: list[int],
    *,
    apart: bool = False,
) -> float:
    """Median seconds of a step of a real pretraining, without the first steps.

    With ``apart``, of the first of ``ranks`` independent trainings of one rank each that run at the same time.
    """
    run = str(folder / (f"ranks-{ranks}-apart-RANK" if apart else f"ranks-{ranks}"))
    together = 1 if apart else ranks
    command = [
        sys.executable, "-m", "pscl_hpc.cli", "pretrain", "--config", str(config), f"run={run}",
        f"batch_size={arguments.images * together}", f"method.reference.per_batch={together}", *settings,
    ]  # fmt: skip
    start(ranks, command, cores, apart=apart)
    metrics = Path(run.replace("RANK", "0")) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    times = [line["time"] for line in lines if "loss" in line]
    return float(statistics.median(b - a for a, b in itertools.pairwise(times[2:])))


def start(ranks: int, command: list[str], cores: list[int], *, apart: bool = False) -> list[str]:
    """Run a command once per rank, each pinned to a core; their output. ``apart``: as independent processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        place = {
            "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        environment = {**os.environ, **({} if apart else place), "OMP_NUM_THREADS": "1"}
        core = cores[rank % len(cores)]
        processes.append(
            subprocess.Popen(
                [word.replace("RANK", str(rank)) for word in command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda core=core: os.sched_setaffinity(0, {core}),  # type: ignore[misc]
            )
        )
    printed = []
    for process in processes:
        out, problem = process.communicate()
        if process.returncode:
            sys.exit(problem)
        printed.append(out)
    return printed


def link(ranks: int, cores: list[int]) -> dict[str, float]:
    """Bandwidth and latency, by the model of `Links`, of gloo between ranks of this machine."""
    printed = start(ranks, [sys.executable, "-m", "bench.scaling", "--link"], cores)
    found: dict[str, float] = json.loads(printed[0].splitlines()[-1])
    return found


def measure_link() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    seconds = {}
    for size in (4, LARGE):
        message = torch.zeros(size // 4)
        taken = []
        for _ in range(24):
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(message)
            taken.append(time.perf_counter() - begin)
        seconds[size] = statistics.median(taken[4:])
    # all_reduce(n) = 2 ((W - 1) / W n / bandwidth + (W - 1) latency), see pscl_hpc/planning/predict.py
    latency = seconds[4] / 2 / (ranks - 1)
    bandwidth = 2 * (ranks - 1) / ranks * LARGE / max(seconds[LARGE] - seconds[4], 1e-9)
    if dist.get_rank() == 0:
        print(json.dumps({"bandwidth": bandwidth, "latency": latency}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

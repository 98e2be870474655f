"""Kills a small pretraining with SIGKILL at random moments and compares it with an uninterrupted one.

    python -m bench.chaos [--kills 50] [--ranks 1 2] [--seed 0]

For each number of ranks: one uninterrupted training, and one that is killed N times (one or both of two ranks) and
started again each time. The complete state of the last checkpoints and the exported trunks must then be equal to the
last bit, and no half-written file may remain. Writes `cpu-chaos-<ranks>.json`.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.record import record
from pscl_hpc.archive import Collection, ShardWriter
from pscl_hpc.config import resolve_config, to_yaml
from pscl_hpc.runs import CheckpointStore

ROOT = Path(__file__).resolve().parents[1]
STEPS = 400


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    command = f"python -m bench.chaos --kills {options.kills} --steps {options.steps} --seed {options.seed}"
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            result = chaos(Path(folder), ranks, options.kills, options.steps, options.seed)
        path = record(f"cpu-chaos-{ranks}", result, command=f"{command} --ranks {ranks}")
        print(path, json.dumps({key: value for key, value in result.items() if key != "log"}))
        if not (result["identical"] and not result["left_over"]):
            sys.exit(1)


def chaos(folder: Path, ranks: int, kills: int, steps: int, seed: int) -> dict[str, object]:
    """Train once without and once with kills, and compare."""
    dice = random.Random(seed)
    archive = folder / "archive.h5"
    write_archive(archive)
    whole, broken = folder / "whole", folder / "broken"
    began = time.monotonic()
    codes = _finish(_start(ranks, _write_config(archive, whole, steps)))
    assert codes == [0] * ranks, codes
    alone_s = time.monotonic() - began
    config = _write_config(archive, broken, steps)
    log: list[dict[str, object]] = []
    while len(log) < kills:
        at_start = _newest(broken)
        processes = _start(ranks, config)
        # From before the start of Python to well into the training, but never so late that the training ends.
        wait = dice.uniform(0.0, 1.5 * alone_s)
        end = time.monotonic() + wait
        limit = at_start + dice.randint(1, max(1, (steps - at_start) // (kills - len(log) + 1)))
        while time.monotonic() < end and _newest(broken) < limit:
            time.sleep(0.002)
        time.sleep(dice.uniform(0.0, 0.05))
        victims = dice.choice([processes, [dice.choice(processes)]])
        for process in victims:
            process.send_signal(signal.SIGKILL)
        codes = _finish(processes)
        log.append(
            {
                "killed_ranks": sorted(processes.index(process) for process in victims),
                "after_s": round(wait, 3),
                "checkpoint_before": at_start,
                "checkpoint_after": _newest(broken),
                "exit_codes": codes,
            }
        )
        assert 0 not in codes, f"kill {len(log)} came too late: raise --steps"
    codes = _finish(_start(ranks, config))
    assert codes == [0] * ranks, codes
    hashes = [_state_hash(run) for run in (whole, broken)]
    trunks = [hashlib.sha256((run / "trunk.safetensors").read_bytes()).hexdigest() for run in (whole, broken)]
    return {
        "ranks": ranks,
        "steps": steps,
        "kills": kills,
        "identical": hashes[0] == hashes[1] and trunks[0] == trunks[1],
        "state_sha256": hashes,
        "trunk_sha256": trunks,
        "left_over": sorted(str(p.relative_to(broken)) for p in broken.rglob("*") if p.name.endswith(".tmp")),
        "attempts": len(json.loads((broken / "run.json").read_text())["attempts"]),
        "log": log,
    }


def write_archive(path: Path, patches: int = 6) -> None:
    """Eight images of two phases, `patches` x `patches` squares of 8 pixels each."""
    random_numbers = np.random.default_rng(0)
    with ShardWriter(path, [Collection("alloy", ("matrix", "phase"), 0, (), ("alloy/0",))]) as writer:
        for index in range(8):
            mask = np.kron(random_numbers.integers(0, 2, (patches, patches)), np.ones((8, 8))).astype(
                np.uint8
            )
            image = np.clip(80 + 90 * mask + random_numbers.normal(0, 15, mask.shape), 0, 255).astype(
                np.uint8
            )
            writer.add(image, id=f"alloy/{index}", dataset="alloy", mask=mask, split="train")


def _write_config(archive: Path, run: Path, steps: int) -> Path:
    tree = {
        "kind": "pretrain",
        "run": str(run),
        "data": {"archive": str(archive)},
        "model": {"widths": [4, 8]},
        "views": {"size": [32, 32]},
        "method": {
            "name": "pscl-simclr",
            "reference": {"ids": ["alloy/0"], "per_batch": 2},
            "templates_per_class": 2,
        },
        "batch_size": 4,
        "schedule": {"steps": steps},
        "log": {"every_steps": 1},
        "checkpoint": {"every_steps": 2},
        "runtime": {"threads": 1, "device": "cpu", "collective_timeout_s": 60, "init_timeout_s": 30},
    }
    file = run.with_suffix(".yaml")
    file.write_text(to_yaml(resolve_config(tree, source="bench/chaos.py")))
    return file


def _start(ranks: int, config: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pscl_hpc.cli", "pretrain", "--config", str(config)]
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{key: str(value) for key, value in {**place, **meeting}.items()}}
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
    return processes


def _finish(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    try:
        return [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()


def _newest(run: Path) -> int:
    return max([0, *CheckpointStore(run / "checkpoints").steps()])


def _state_hash(run: Path) -> str:
    """SHA-256 of every tensor and value of the last checkpoint, by name."""
    digest = hashlib.sha256()

    def add(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                add(f"{name}/{key}", value[key])
        elif isinstance(value, list | tuple):
            for index, part in enumerate(value):
                add(f"{name}/{index}", part)
        elif isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())

    add("", CheckpointStore(run / "checkpoints").load_latest())
    return digest.hexdigest()


if __name__ == "__main__":
    main()

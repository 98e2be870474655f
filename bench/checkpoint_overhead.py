"""The cost of checkpoints in training steps.

    python -m bench.checkpoint_overhead [--device cpu|cuda] [--steps 10] [--every 5] [--batch 8] [--size 128]

Steps of PSCL-SimCLR with the default network are timed without checkpoints and with one every N steps, each written in
the background as in a run. Blocks of both kinds alternate, so that other load on the machine affects both. The cost of
a checkpoint is the difference of the block times divided by the checkpoints in a block; its share at the default
interval (`checkpoint.every_steps`) follows from it. Writes `<cpu or gpu>-checkpoint-overhead.json`.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from bench.chaos import write_archive
from bench.record import record
from pscl_hpc.archive import Archive
from pscl_hpc.config import CheckpointConfig, resolve_config
from pscl_hpc.pretraining import PretrainTask
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.runs import BackgroundWriter, CheckpointStore, RunFolder
from pscl_hpc.training import Loop, Ranks, setup_device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=6, help="blocks of each kind")
    parser.add_argument(
        "--every", type=int, default=5, help="steps between two checkpoints in a block with them"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="folder of the checkpoints; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), options)
    command = (
        f"python -m bench.checkpoint_overhead --device {options.device} --steps {options.steps} "
        f"--blocks {options.blocks} --every {options.every} --batch {options.batch} --size {options.size}"
    )
    kind = "gpu" if options.device == "cuda" else "cpu"
    path = record(f"{kind}-checkpoint-overhead", result, command=command)
    print(path, json.dumps(result, indent=2))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Times of steps with and without checkpoints."""
    write_archive(folder / "archive.h5", patches=64)
    config = resolve_config(
        {
            "kind": "pretrain",
            "run": str(folder / "run"),
            "data": {"archive": str(folder / "archive.h5")},
            "views": {"size": [options.size, options.size]},
            "method": {"name": "pscl-simclr", "reference": {"ids": ["alloy/0"]}},
            "batch_size": options.batch,
            "runtime": {"device": options.device},
        },
        source="bench/checkpoint_overhead.py",
    )
    assert isinstance(config, PretrainConfig)
    device = setup_device(config.runtime)
    with Archive(folder / "archive.h5") as archive:
        ranks = Ranks.alone(device)
        task = PretrainTask(config, archive, ranks)
        loop = Loop(task, RunFolder.follow(folder / "run", config, done=False), ranks)
        store = CheckpointStore(folder / "checkpoints")
        writer = BackgroundWriter(store)
        batches = [task.dataset[0]]
        handed: list[float] = []

        def block(*, saving: bool) -> float:
            _wait(device)
            began = time.perf_counter()
            for step in range(1, options.steps + 1):
                loop.step(batches, measure=False)
                if saving and step % options.every == 0:
                    before = time.perf_counter()
                    writer.save(loop.position.step, loop.state())
                    handed.append(time.perf_counter() - before)
            _wait(device)
            return time.perf_counter() - began

        block(saving=True)
        writer.flush()
        handed.clear()
        without, with_ = [], []
        for _ in range(options.blocks):
            without.append(block(saving=False))
            with_.append(block(saving=True))
            writer.flush()
        writer.close()
        size = max(path.stat().st_size for path in store.folder.glob("step-*.pt"))
    step_s = statistics.median(without) / options.steps
    one_s = (statistics.median(with_) - statistics.median(without)) / (options.steps // options.every)
    default = CheckpointConfig().every_steps
    return {
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "size": options.size,
        "checkpoint_mb": round(size / 1e6, 2),
        "step_ms": round(1e3 * step_s, 3),
        "blocks_without_s": [round(value, 4) for value in without],
        "blocks_with_s": [round(value, 4) for value in with_],
        "handing_over_ms": round(1e3 * statistics.median(handed), 3),
        "one_checkpoint_ms": round(1e3 * one_s, 3),
        "default_every_steps": default,
        "share_at_default_interval": round(one_s / (default * step_s), 6),
        "handing_over_share_at_default_interval": round(statistics.median(handed) / (default * step_s), 6),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()

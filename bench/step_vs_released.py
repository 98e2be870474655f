# mypy: disable-error-code="no-untyped-call"
"""One PSCL-SimCLR step on a CPU: ours and the released code with the same weights, images, geometry and tie-breaks.

    python bench/step_vs_released.py CHECKOUT [--size 376] [--batch 8] [--repeats 2]

CHECKOUT is a checkout of github.com/neulmc/PSCL at commit 9b012a9 (see `bench/released.py`); `bench/gpu/step.py` does
the same on a GPU. Ours is measured in float32 and, as `runtime.precision: auto` has it on CPUs where that is faster, in
bfloat16. Each runs in a separate process, to measure its peak memory, and they take turns. CPU seconds are those of the
process: unlike elapsed seconds they depend little on other work on the machine. The
loss is compared with every released behaviour switched on, and then with one switched off at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.record import record
from bench.released import (
    OURS,
    RELEASED,
    Resize,
    build_ours,
    build_released,
    load_released,
    make_batch,
    ours_step,
    released_inputs,
    released_step,
    tie_breaks,
)
from pscl_hpc.training.device import keep_freed_memory

RUNS = ("released", "ours", "ours, bfloat16")


def measure(which: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time ``repeats`` steps after a first one; runs in a child process."""
    torch.set_num_threads(arguments.threads)
    views = make_batch(arguments.size, arguments.batch)
    ours = build_ours(RELEASED if which == "released" else OURS)
    if which == "released":
        module, losses = load_released(arguments.checkout)
        model = build_released(module, ours)
        inputs = released_inputs(views)
        step = lambda: released_step(model, losses, inputs)  # noqa: E731
    else:
        keep_freed_memory()
        step = lambda: ours_step(ours, views, bfloat16=which == "ours, bfloat16")  # noqa: E731
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, cpu_seconds = [], []
    for _ in range(arguments.repeats + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        loss, _ = step()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        for parameter in (ours if which != "released" else model).parameters():
            parameter.grad = None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds[1:],
        "cpu_seconds": cpu_seconds[1:],
        "first_seconds": seconds[0],
        "peak_mb": peak,
        "peak_over_start_mb": peak - base,
        "last_loss": float(loss),
    }


def explain(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Loss of both with every released behaviour, then of ours with our default for one behaviour at a time."""
    torch.set_num_threads(arguments.threads)
    views = make_batch(arguments.size, arguments.batch)
    module, losses = load_released(arguments.checkout)
    rows = []
    for exact in (False, True):
        Resize.exact = exact
        name = "released code" + (", nearest-neighbour index in whole numbers" if exact else "")
        with tie_breaks(views):
            model = build_released(module, build_ours(RELEASED))
            rows.append(_row(name, *released_step(model, losses, released_inputs(views))))
    variants = [("ours, every released behaviour", RELEASED)]
    variants += [(f"ours, {key}: {OURS[key]}", {**RELEASED, key: OURS[key]}) for key in RELEASED]
    variants += [("ours, defaults", OURS)]
    for name, options in variants:
        rows.append(_row(name, *ours_step(build_ours(options), views)))
    return rows


def _row(name: str, loss: Tensor, terms: dict[str, Tensor]) -> dict[str, Any]:
    return {"what": name, "loss": float(loss), **{key: float(value) for key, value in terms.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--size", type=int, default=376)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--turns", type=int, default=1, help="how often the two take turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--child", choices=[*RUNS, "explain"])
    arguments = parser.parse_args()
    if arguments.child:
        print(
            json.dumps(
                explain(arguments) if arguments.child == "explain" else measure(arguments.child, arguments)
            )
        )
        return
    runs: dict[str, list[dict[str, Any]]] = {which: [] for which in RUNS}
    for _ in range(arguments.turns):
        for which in runs:
            runs[which].append(_child(which))
    rows = _child("explain")
    best, cpu = (
        {which: min(min(run[key]) for run in found) for which, found in runs.items()}
        for key in ("seconds", "cpu_seconds")
    )
    memory = {which: max(run["peak_mb"] for run in found) for which, found in runs.items()}
    result = {
        "size": arguments.size, "batch": arguments.batch, "threads": arguments.threads, "runs": runs,
        "best_seconds": best, "speedup": best["released"] / best["ours"], "best_cpu_seconds": cpu,
        "cpu_speedup": {which: cpu["released"] / value for which, value in cpu.items()},
        "peak_mb": memory, "memory_ratio": memory["ours"] / memory["released"], "loss": rows,
    }  # fmt: skip
    print(
        json.dumps(
            {key: result[key] for key in ("best_cpu_seconds", "cpu_speedup", "peak_mb", "loss")}, indent=2
        )
    )
    command = f"python bench/step_vs_released.py CHECKOUT --size {arguments.size} --batch {arguments.batch}"
    print(record("cpu-step-vs-released", result, command=f"{command} --repeats {arguments.repeats}"))


def _child(which: str) -> Any:
    done = subprocess.run(
        [sys.executable, *sys.argv, "--child", which], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

"""The card's own rates, of which every result is given as a share."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from bench.gpu.measure import measure
from bench.record import record

EXPONENTIALS_PER_CLOCK = 16
"""Base-2 exponentials per clock and multiprocessor on compute capability 8.0 to 10.0."""

CLOCK_HZ = 1.75e9
"""Clock of an H100 under load; not every driver tells the one in force."""


def main() -> None:
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copy = measure(lambda: target.copy_(source))["median_ms"]
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = measure(lambda: a @ b)["median_ms"]
    card = torch.cuda.get_device_properties(0)
    exponentials = EXPONENTIALS_PER_CLOCK * card.multi_processor_count * CLOCK_HZ
    result = {
        "copy_bytes_per_second": 2 * source.numel() / copy * 1e3,
        "bfloat16_flops_per_second": 2 * 8192**3 / product * 1e3,
        "multiprocessors": card.multi_processor_count,
        "clock_hz_assumed": CLOCK_HZ,
        "exponentials_per_second": exponentials,
    }
    print(record("gpu-ceilings", result, command="bash bench/gpu.sh OUT"))


def read() -> dict[str, Any]:
    """The ceilings that `main` recorded in the results folder."""
    path = Path(os.environ["PSCL_BENCH_RESULTS"]) / "gpu-ceilings.json"
    result: dict[str, Any] = json.loads(path.read_text())["result"]
    return result


if __name__ == "__main__":
    main()

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The card's own rates: copy, 16-bit matrix product, base-2 exponential. Every result is given as a share of them."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from bench.gpu import floors
from bench.gpu.measure import measure
from bench.gpu.results import Results, read
from bench.gpu.setting import Setting, parse

EXPONENTIALS_PER_CLOCK = 16
"""Base-2 exponentials per clock and multiprocessor on compute capability 8.0 to 10.0."""

BLOCK = 1024
"""Numbers of one program of `_exponentials`."""


def main() -> None:
    setting = parse(__doc__)
    results = Results("ceilings", setting, {}, of_kernels=False)
    results.entries.clear()
    for name, (call, work) in calls(setting).items():
        found = measure(setting, call, seconds=2.0)
        if "median_ms" in found:
            results.header[name] = work / found["median_ms"] * 1e3
        results.add({"what": name, "work": work, **found})
    if not setting.tiny:
        count = torch.cuda.get_device_properties(0).multi_processor_count
        results.header["multiprocessors"] = count
        rate = results.header.get("exponentials_per_second", 0.0)
        results.header["clock_hz_by_exponentials"] = rate / (EXPONENTIALS_PER_CLOCK * count)
    print(results.write())


def calls(setting: Setting) -> dict[str, tuple[Callable[[], object], float]]:
    """Call and work (bytes, operations, exponentials) of each ceiling."""
    size, side, programs, rounds = (2**16, 64, 2, 8) if setting.tiny else (2**30, 8192, 16_384, 256)
    device = setting.device
    source = torch.empty(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).to(setting.dtypes[0]) for _ in range(2))
    out = torch.zeros(programs * BLOCK, device=device)

    def exponentials() -> None:
        _exponentials[(programs,)](out, rounds, BLOCK=BLOCK)

    return {
        "copy_bytes_per_second": (lambda: target.copy_(source), 2.0 * size),
        "flops_per_second": (lambda: a @ b, 2.0 * side**3),
        "exponentials_per_second": (exponentials, float(programs) * BLOCK * rounds),
    }


def load(setting: Setting) -> floors.Ceilings | None:
    """The ceilings recorded in the results folder; None where one is missing."""
    found = read(f"gpu-{setting.slug()}-ceilings")
    if found is None or not all(key in found for key in floors.Ceilings._fields):
        return None
    return floors.of(found)


@triton.jit
def _exponentials(out, rounds, BLOCK: tl.constexpr):
    """Base-2 exponentials one after the other: x becomes 2^-x, whose values stay between 0 and 1."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(out + place)
    for _ in range(rounds):
        x = tl.math.exp2(-x)
    tl.store(out + place, x)


if __name__ == "__main__":
    main()
